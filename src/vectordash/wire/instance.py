"""An instance: what a renter rents, how it is asked for, how it is reached, and what happened to it."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Status = Literal[
    "pending",  # being started
    "active",  # a login was tried and worked
    "complete",  # ended, by whom or what ever
]

Name = Annotated[
    str,
    Meta(
        # `$` alone would let a trailing newline through.
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$(?!\n)",
        min_length=1,
        max_length=63,
        description="A hostname: letters, digits, `-` and `_` (which becomes `-` in the hostname).",
    ),
]


class PhysicalGpu(Struct, frozen=True):
    """One card of an instance. `id` is unique in the cloud, tied to the card, never used again."""

    id: int
    type: str


class Instance(Struct, frozen=True):
    """An instance as the reference documents it."""

    key: str
    name: str
    ip: str
    port: int
    user: str
    pem: str
    """RSA private key; empty once the instance is gone, or where its renter alone has it."""
    physical_gpus: list[PhysicalGpu]
    cpu: str
    ram: int
    """GB."""
    storage: int
    """GB."""
    image: str
    start_time: datetime
    end_time: datetime | None
    hourly_price: Decimal
    estimated_charge: Decimal
    duration: int
    """Started hours since it became active."""
    guaranteed_availability: str
    """`unlimited` or `YYYY-MM-DD HH:MM:SS`, UTC."""
    status: Status
    error_occurred: bool


class OneInstance(Struct, frozen=True):
    """An answer about a single instance."""

    instance: Instance


class Instances(Struct, frozen=True):
    """`GET /api/instances`, newest first."""

    instances: list[Instance]


class NewInstance(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/instances`."""

    name: Name
    gpu: Annotated[str, Meta(min_length=1, max_length=60, description="A GPU type, compared without case.")]
    image: Annotated[str, Meta(min_length=1, max_length=60)] = "deep-learning-box"
    date: (
        Annotated[
            str,
            Meta(
                # `\d` would let other alphabets' digits through.
                pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}$(?!\n)",
                description="`YYYY-MM-DD HH:MM:SS`, UTC: the GPU must be available at least until then.",
            ),
        ]
        | UnsetType
    ) = UNSET


class Rename(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /api/instances/<key>`."""

    name: Name


class Connection(Struct, frozen=True):
    """All that SSH needs, in one answer."""

    ip: str
    port: int
    user: str
    pem: str
    ssh_host_key: str
    """`ssh-ed25519 AAAA…`, known before the instance boots."""
    known_hosts: str
    ssh_command: str


class OneConnection(Struct, frozen=True):
    """`GET /api/instances/<key>/connection`."""

    connection: Connection


class Event(Struct, frozen=True):
    """Something that happened to an instance."""

    time: datetime
    kind: str
    attempt: int | None
    """Which try to run it, counted from 1; null where no single one is meant."""
    message: str


class Events(Struct, frozen=True):
    """`GET /api/instances/<key>/events`, oldest first."""

    events: list[Event]
