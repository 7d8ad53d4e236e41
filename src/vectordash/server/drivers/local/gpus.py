"""The graphics cards of this computer: NVIDIA's, through NVML, or made-up ones where there are none.

Simulated cards let the whole of the cloud be tried on a laptop. They are marked as such everywhere, and
their identities derive from the cluster's, so they are the same after a restart. Everything here blocks;
the driver calls it in a thread.
"""

import uuid
from dataclasses import dataclass
from typing import Any

import pynvml

from vectordash.server.drivers.base import SeenGpu, Unreachable

SIMULATED = (
    ("NVIDIA GeForce GTX 1080 Ti", 11),
    ("NVIDIA GeForce GTX 1080 Ti", 11),
    ("NVIDIA TITAN V", 12),
    ("Tesla V100-SXM2-16GB", 16),
)
_NAMESPACE = uuid.UUID("6f0f1f0e-5d0c-4f0b-9a52-3c1c6d0a7b11")


@dataclass(frozen=True, slots=True)
class Card:
    """A card and the way to it."""

    seen: SeenGpu
    device: str | None
    """Its device file; None if it is simulated."""


def real() -> tuple[Card, ...]:
    """List the cards that NVML knows; none where there is no driver. A card that fails is left out."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        # Not "no cards": that would offer simulated ones on a machine whose driver is out of order.
        raise Unreachable(f"NVML does not answer: {error}") from error
    try:
        return tuple(card for index in range(pynvml.nvmlDeviceGetCount()) if (card := _card(index)))
    except pynvml.NVMLError as error:
        raise Unreachable(f"NVML does not answer: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def simulated(identity: str) -> tuple[Card, ...]:
    """List the made-up cards of the cluster with this identity."""
    return tuple(
        Card(
            SeenGpu(f"GPU-{uuid.uuid5(_NAMESPACE, f'{identity}/{index}')}", model, vram, simulated=True), None
        )
        for index, (model, vram) in enumerate(SIMULATED)
    )


def _card(index: int) -> Card | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        gpu = SeenGpu(
            uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
            model=_text(pynvml.nvmlDeviceGetName(handle)),
            # A maker's 16 GB is 16 GiB less what the card keeps to itself.
            vram=round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30),
        )
        return Card(gpu, f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(handle)}")
    except pynvml.NVMLError:
        return None


def _text(value: Any) -> str:
    """Older versions of the binding answer in bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
