"""What an instance gets of the machine that it is put on. Pure.

Which GPU is chosen is one index seek: `machines/offers.py: best_offer`.
"""

from collections.abc import Collection
from dataclasses import dataclass

_RESERVED_RAM = 2
"""GB that stay with the machine itself."""


@dataclass(frozen=True, slots=True)
class Share:
    """Limits of an instance."""

    cores: int
    ram: int
    """GB."""
    storage: int
    """GB."""


def share(*, cores: int, ram: int, disk: int, gpus: int) -> Share:
    """Give each GPU of a machine an equal part of it, less a reserve; at least 1 of everything."""
    parts = max(1, gpus)
    return Share(
        cores=max(1, cores // parts),
        ram=max(1, (ram - _RESERVED_RAM) // parts),
        storage=max(1, disk * 9 // 10 // parts),
    )


def next_port(first: int, last: int, last_given: int, held: Collection[int]) -> int | None:
    """Give the port after the one given last, in a circle, past those held; None if all are."""
    size = last - first + 1
    start = last_given + 1 - first if first <= last_given <= last else 0
    for step in range(size):
        port = first + (start + step) % size
        if port not in held:
            return port
    return None
