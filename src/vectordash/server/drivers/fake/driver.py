"""A cluster in memory that obeys the protocol to the letter, and takes orders for faults.

It ships with the server: for tests, benches and simulations of thousands of machines. The same contract
suite runs against it and against real clusters, so it cannot lie unless it is told to.
"""

import asyncio
import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from vectordash.server.drivers.base import (
    Access,
    PortBusy,
    SeenGpu,
    SeenInstance,
    SeenMachine,
    Spec,
    StartFailed,
    Unreachable,
)

Call = Literal["identity", "machines", "instances", "instance", "recall", "ensure", "login", "remove"]


@dataclass(slots=True)
class Fault:
    """An order: the next `times` calls of this kind go wrong, of one card only if `gpu` is given."""

    call: Call
    error: Exception | None = None
    """Raised, before anything is done, or after it if `after`."""
    delay: float = 0.0
    """Seconds that the call takes; `inf`: it hangs."""
    after: bool = False
    gpu: str | None = None
    times: int = 1


@dataclass(slots=True)
class FakeInstance:
    """Something that the fake cluster runs."""

    spec: Spec
    running: bool = True


def simple_machine(name: str = "m1", *models: str, vram: int = 11) -> SeenMachine:
    """Describe a machine with one simulated card a model."""
    cards = tuple(
        SeenGpu(f"GPU-{name}-{number}", model, vram, simulated=True) for number, model in enumerate(models)
    )
    return SeenMachine(
        name=name,
        online=True,
        cpu="AMD Ryzen Threadripper 1950X",
        cores=16,
        ram=64,
        disk=1000,
        address="127.0.0.1",
        gpus=cards,
    )


@dataclass(slots=True)
class FakeDriver:
    """The cluster. Tests look into its fields and change them."""

    inventory: list[SeenMachine]
    name: str = "fake-1"
    reachable: bool = True
    there: dict[str, FakeInstance] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    """Names that a list leaves out although they are there: a lie."""
    stubborn: set[str] = field(default_factory=set)
    """Names that stay although their removal is reported: another lie."""
    vanished: dict[str, FakeInstance] = field(default_factory=dict)
    busy_ports: set[int] = field(default_factory=set)
    """Ports that another program uses."""
    faults: list[Fault] = field(default_factory=list)
    calls: Counter[Call] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    """Each time that two ran at once on a card, or at a port of a machine; what ended is not forgotten."""
    news: int = 0
    """How often something has changed by itself."""
    kind: str = "fake"
    user: str = "ubuntu"
    start_deadline: float = 15.0
    _heard: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _started: asyncio.Event = field(default_factory=asyncio.Event)
    _bound: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Which instances were given an address and port, so that no call looks through all of them."""
    _claimed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Which instances have run on a card, or at a port of a machine."""

    async def identity(self) -> str:
        """See `Driver`."""
        await self._meet("identity")
        return self.name

    async def machines(self) -> Sequence[SeenMachine]:
        """See `Driver`."""
        await self._meet("machines")
        return tuple(self.inventory)

    async def instances(self) -> Sequence[SeenInstance]:
        """See `Driver`."""
        await self._meet("instances")
        return tuple(one for one in self.census() if one.name not in self.hidden)

    async def instance(self, name: str) -> SeenInstance | None:
        """See `Driver`."""
        await self._meet("instance")
        one = self.there.get(name)
        return None if one is None else _seen(name, one)

    async def recall(self, name: str) -> Spec | None:
        """See `Driver`."""
        await self._meet("recall")
        one = self.there.get(name)
        return None if one is None else one.spec

    async def ensure(self, spec: Spec) -> None:
        """See `Driver`."""
        fault = await self._meet("ensure", spec.gpus)
        one = self.there.get(spec.name)
        if one is None or not one.running:
            self._demand_gpus(spec)
            self._demand_port(spec)
            self._run(FakeInstance(spec))
        if fault is not None and fault.error is not None:
            raise fault.error

    def _demand_gpus(self, spec: Spec) -> None:
        cards = {
            card.uuid for machine in self.inventory if machine.name == spec.machine for card in machine.gpus
        }
        for uuid in spec.gpus:
            if uuid not in cards:
                raise StartFailed(f"the machine has no GPU {uuid}")

    def _demand_port(self, spec: Spec) -> None:
        """Refuse a port that is in use on the machine, by another program or by another instance."""
        others = {one.machine for one in self._listening(spec.address, spec.port)}
        if spec.port in self.busy_ports or spec.machine in others:
            raise PortBusy(spec.port)
        self._bound[spec.address, spec.port].add(spec.name)

    def _run(self, one: FakeInstance) -> None:
        """Let it run, whoever else does; what may never be is put on record."""
        name = one.spec.name
        self.there[name] = one
        for claim in _claims(one.spec) if one.running else ():
            for other in sorted(self._claimed[claim] - {name}):
                rival = self.there.get(other)
                if rival is not None and rival.running and claim in _claims(rival.spec):
                    self.violations.append(f"{other} and {name} both run {claim}")
            self._claimed[claim].add(name)
        self._started.set()

    async def login(self, access: Access) -> None:
        """See `Driver`."""
        where = access.address, access.port
        await self._meet("login", tuple(gpu for spec in self._listening(*where) for gpu in spec.gpus))
        while not (specs := self._listening(*where)):
            self._started.clear()
            await self._started.wait()
        known = [spec for spec in specs if _public(spec.host_key) == _bare(access.host_key)]
        if not known:
            raise StartFailed("another machine answers at this address: its host key differs")
        keys = {_bare(line) for spec in known for line in spec.authorized_keys}
        if access.user != self.user or _public(access.pem) not in keys:
            raise StartFailed("the machine refuses the renter's key")

    def _listening(self, address: str, port: int) -> list[Spec]:
        """List who answers there: more than one where simulated machines share an address."""
        found = (self.there.get(name) for name in self._bound[address, port])
        return [one.spec for one in found if one is not None and one.running and one.spec.port == port]

    async def remove(self, name: str) -> None:
        """See `Driver`."""
        one = self.there.get(name)
        fault = await self._meet("remove", one.spec.gpus if one else ())
        if name not in self.stubborn and (gone := self.there.pop(name, None)) is not None:
            self._bound[gone.spec.address, gone.spec.port].discard(name)
            for claim in _claims(gone.spec):
                self._claimed[claim].discard(name)
        if fault is not None and fault.error is not None:
            raise fault.error

    async def changed(self) -> None:
        """See `Driver`."""
        self._heard = await self.news_after(self._heard)

    async def news_after(self, heard: int) -> int:
        """Return `news` once it is another number than the one last heard of. Any number may wait."""
        while self.news == heard:
            await self._changed.wait()
        return self.news

    async def close(self) -> None:
        """See `Driver`."""

    def census(self) -> tuple[SeenInstance, ...]:
        """List all that is there, hidden or not."""
        return tuple(_seen(name, one) for name, one in self.there.items())

    def stop(self, name: str) -> None:
        """Let an instance stop by itself, as in a power cut."""
        self.there[name].running = False
        self._tell()

    def vanish(self, name: str) -> None:
        """Let an instance be gone without a trace."""
        self.vanished[name] = self.there.pop(name)
        self._tell()

    def come_back(self, name: str) -> None:
        """Let a vanished instance be there again."""
        self._run(self.vanished.pop(name))
        self._tell()

    def _tell(self) -> None:
        self.news += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _meet(self, call: Call, gpus: tuple[str, ...] = ()) -> Fault | None:
        """Count the call and suffer what was ordered for it; gives a fault that strikes after the deed."""
        self.calls[call] += 1
        if not self.reachable:
            raise Unreachable("the fake cluster was told not to answer")
        fault = self._due(call, gpus)
        if fault is None:
            return None
        if fault.delay == float("inf"):
            await asyncio.Event().wait()
        await asyncio.sleep(fault.delay)
        if fault.after:
            return fault
        if fault.error is not None:
            raise fault.error
        return None

    def _due(self, call: Call, gpus: tuple[str, ...]) -> Fault | None:
        """Take the next fault that was ordered for such a call."""
        fault = next((one for one in self.faults if one.call == call and one.gpu in (None, *gpus)), None)
        if fault is not None:
            fault.times -= 1
            if fault.times <= 0:
                self.faults.remove(fault)
        return fault


def _claims(spec: Spec) -> tuple[str, ...]:
    """Name what an instance must have to itself while it runs."""
    return (*(f"on {uuid}" for uuid in spec.gpus), f"at port {spec.port} of {spec.machine}")


def _seen(name: str, one: FakeInstance) -> SeenInstance:
    return SeenInstance(name, "running" if one.running else "stopped", one.spec.gpus, one.spec.port)


@functools.lru_cache(maxsize=4096)
def _public(pem: str) -> str:
    """Give the public half of a private key, as OpenSSH writes it."""
    data = pem.encode()
    # The keys are of our own making, so their primes need no proof, which would take 50 ms.
    key = (
        load_ssh_private_key(data, None, unsafe_skip_rsa_key_validation=True)
        if "OPENSSH" in pem
        else load_pem_private_key(data, None, unsafe_skip_rsa_key_validation=True)
    )
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _bare(line: str) -> str:
    """Give a public key without its comment."""
    return " ".join(line.split()[:2])
