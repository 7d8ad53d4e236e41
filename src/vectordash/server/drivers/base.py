"""The protocol between the control plane and a kind of cluster.

A driver does what it is told and reports what it sees. It keeps no plan, writes nothing to the store and
never decides that something should end. Everything here is level-triggered: a call may be repeated at any
time, by another process, after a crash at any line of the last one, and ends in the same place.
`reconciler/` is the only caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from vectordash.server.trouble import Trouble


class DriverError(Trouble):
    """The driver could not do it. The message is shown to the renter in `/events` and to the operator."""


class Unreachable(DriverError):
    """The cluster did not answer, so nothing is known of what runs there. Never evidence of a loss."""


class StartFailed(DriverError):
    """The instance did not start. `transient` says whether the same GPU may do better the next time."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class PortBusy(StartFailed):
    """Something else on the machine listens on the port: another port will do."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is in use on the machine by another program", transient=True)
        self.port = port


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """One physical card, as its driver reports it."""

    uuid: str
    """The card's own identity (`GPU-…` from NVML): the same after a reboot and in another slot."""
    model: str
    """The driver's name of it, such as `NVIDIA GeForce GTX 1080 Ti`."""
    vram: int
    """GB."""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class SeenMachine:
    """A computer of the cluster, as it is now."""

    name: str
    online: bool
    """False: known to the cluster, but takes no placements now (down, or being emptied)."""
    cpu: str
    """Model name of the processor."""
    cores: int
    ram: int
    """GB."""
    disk: int
    """GB that instances may fill."""
    address: str
    """Where instances of this machine are reached, and what they bind, unless the cluster says otherwise."""
    gpus: tuple[SeenGpu, ...] = ()


@dataclass(frozen=True, slots=True)
class SeenInstance:
    """Something of ours that exists on the cluster, running or not."""

    name: str
    """The driver name, `vd-…`: an attempt's, given by the store."""
    state: Literal["running", "stopped"]
    gpus: tuple[str, ...] = ()
    """UUIDs of the cards that it was given; they and the port are withheld if nobody knows the instance."""
    port: int = 0
    """The SSH port that it was given; 0 if that cannot be told."""


@dataclass(frozen=True, slots=True)
class Spec:
    """All that is needed to make an attempt run, or to make it run again."""

    name: str
    """The driver name; unique for ever."""
    hostname: str
    image: str
    machine: str
    gpus: tuple[str, ...]
    """UUIDs of the cards."""
    cores: int
    ram: int
    """GB."""
    storage: int
    """GB."""
    address: str
    """The address to bind."""
    port: int
    authorized_keys: tuple[str, ...]
    """Lines of OpenSSH's `authorized_keys`."""
    host_key: str = field(repr=False)
    """The SSH host key, ed25519, private, in OpenSSH's PEM."""


@dataclass(frozen=True, slots=True)
class Access:
    """How the control plane logs in, to prove that the renter can."""

    address: str
    port: int
    user: str
    host_key: str
    """The public one, `ssh-ed25519 AAAA…`."""
    pem: str = field(repr=False)


class Driver(Protocol):
    """A kind of cluster, connected to one of them.

    Any call may raise `Unreachable`. Callers put a deadline on every call by cancelling it; a cancelled
    call may have taken effect, wholly or in part, and the next one must cope.
    """

    kind: str
    """`local`, `fake`, `incus`."""
    user: str
    """Who the renter logs in as."""
    start_deadline: float
    """Seconds an attempt has from its first `ensure` to a login."""

    async def identity(self) -> str:
        """Tell which cluster this is. Another answer than the stored one means: touch nothing."""
        ...

    async def machines(self) -> Sequence[SeenMachine]:
        """List the computers and their GPUs as they are now."""
        ...

    async def instances(self) -> Sequence[SeenInstance]:
        """List all that is ours, in one call. What it lacks may still be there: ask `instance`."""
        ...

    async def instance(self, name: str) -> SeenInstance | None:
        """Look at one directly. None is proof that nothing of it is left: no process, no disk."""
        ...

    async def recall(self, name: str) -> Spec | None:
        """Tell what one of ours was made from, as far as its cluster keeps it.

        Asked of an instance that the store has never heard of (a restored backup): with it the operator can
        adopt it. All of it comes back, the host key too, as of the last start. None: there is none, or it
        cannot be told.
        """
        ...

    async def ensure(self, spec: Spec) -> None:
        """Make it exist and run, from whatever is there. Already running is success.

        Raises `StartFailed` (or `PortBusy`) if it cannot; what was made so far may stay: `remove` clears it.
        """
        ...

    async def login(self, access: Access) -> None:
        """Log in over SSH as the renter will, the host key checked, and run `true`.

        Waits for the server to come up; raises `StartFailed` if it refuses us for good.
        """
        ...

    async def remove(self, name: str) -> None:
        """Stop it, wipe its disk, and return once nothing is left. Already gone is success."""
        ...

    async def changed(self) -> None:
        """Return when something may have changed by itself. A driver without such news never returns."""
        ...

    async def close(self) -> None:
        """Let go of connections. Instances go on."""
        ...
