"""One pass over a cluster: its machines and GPUs as they are, and what runs there against what should.

One list call a cluster and pass, never one an instance. What is missing is judged against the store as it
was *before* the list, what is unknown against the store as it was *after* it, so that a rent or a release
in between is never mistaken for a fault. A pass decides nothing about an instance: it reports it out of
sight, and `instance.py` looks at it directly.

Of several reconcilers one makes the passes over a cluster, as long as it lives; the others only ask the
cluster who it is, to know whether they may touch it.

An orphan is left alone but for two things: its cluster is asked what it was made from, so that the operator
can adopt it (`instances/adoption.py`), and it is removed once the operator has said so.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection

from vectordash.server.clock import Clock
from vectordash.server.db.presence import Presence
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import DriverError, SeenInstance, SeenMachine
from vectordash.server.instances import sightings
from vectordash.server.instances.adoption import seal_spec
from vectordash.server.instances.sightings import Standing
from vectordash.server.machines import store as machines
from vectordash.server.machines.store import Orphan
from vectordash.server.reconciler.instance import Cluster
from vectordash.server.vault import Vault

log = logging.getLogger(__name__)

_ANSWER = 10.0
"""Seconds that a cluster has to answer a list."""
_REMOVE = 60.0
"""Seconds of a pass in which instances may be removed; what is left then is removed by the next ones."""
_AT_ONCE = 8
"""Orphans that are asked for, or removed, at a time."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a pass leaves to be done, by driver name."""

    stray: Collection[str] = ()
    """The store knows it as released: a driver call that outlived its lease made it again."""
    purge: Collection[str] = ()
    """Orphans that the operator has decided to remove."""
    untold: Collection[str] = ()
    """Orphans of which it is not known yet what they were made from."""


@dataclass(slots=True)
class Watch:
    """The passes over one cluster. What it remembers saves work and decides nothing."""

    store: Store
    clock: Clock
    cluster: Cluster
    grace: float
    """Seconds."""
    machine_timeout: float
    """Seconds."""
    presence: Presence
    vault: Vault
    recall_seconds: float = 5.0
    """Seconds of a pass in which a cluster may tell what orphans were made from; the next pass goes on."""
    _written: Sequence[SeenMachine] | None = field(default=None, init=False)
    """The inventory as last written: an unchanged one is not written again."""
    _down: bool = field(default=False, init=False)
    _vain: Counter[str] = field(default_factory=Counter, init=False)
    """How often each was tried in vain. Who was least often is next, so that one that hangs delays none."""

    async def look(self) -> None:
        """Make one pass, or leave it to whom it falls."""
        if await self._falls_to_us():
            found = await self._pass()
            self.cluster.asked = True
            await self._recall(found.untold)
            await self._sweep(found)
        else:
            await self._recognise()
            self.cluster.asked = True

    async def _falls_to_us(self) -> bool:
        watcher = await self.store.read(machines.watcher_of, self.cluster.id)
        if watcher == self.presence.id:
            return True
        self._forget()
        return watcher is None and await self.store.write(self._take_over)

    def _forget(self) -> None:
        """Others may have written since: the next pass writes all that it sees."""
        self._written, self._down = None, False

    def _take_over(self, connection: Connection) -> bool:
        """Make the passes from now on. A grace that ended while nobody did is given anew."""
        if not machines.watch(connection, self.cluster.id, self.presence.id):
            return False
        now = self.clock()
        sightings.renew_grace(connection, self.cluster.id, now, now + timedelta(seconds=self.grace))
        return True

    async def _recognise(self) -> None:
        try:
            async with asyncio.timeout(_ANSWER):
                await self._demand_identity()
        except (DriverError, TimeoutError) as error:
            self.cluster.trusted = False
            log.warning("cluster %s: %s", self.cluster.name, str(error) or "it took too long")

    async def _pass(self) -> _Found:
        began = self.clock()
        last_well = await self.store.read(machines.last_seen, self.cluster.id)
        before = await self.store.read(sightings.standing, self.cluster.id)
        try:
            inventory, listed = await self._ask()
        except (DriverError, TimeoutError) as error:
            await self._no_answer(last_well or began, str(error) or "it took too long")
            return _Found()
        # One that was released meanwhile was there before: the list may be older than its removal.
        unknown = {one.name for one in listed} - {one.driver_name for one in before}
        known = await self.store.read(sightings.known, unknown) if unknown else {}
        strange = [one for one in listed if one.name in unknown - known.keys()]
        orphans = await self.store.write(
            self._record, began, last_well or began, inventory, before, listed, strange
        )
        if orphans is None:  # taken for dead meanwhile, and nothing was written: what was seen may be old
            self._forget()
            return _Found()
        self._written, self._down = inventory, False
        return _Found(
            stray={name for name, released in known.items() if released},
            purge={one.name for one in orphans if one.purge},
            untold={one.name for one in orphans if one.spec is None and not one.purge},
        )

    async def _ask(self) -> tuple[Sequence[SeenMachine], Sequence[SeenInstance]]:
        driver = self.cluster.driver
        async with asyncio.timeout(_ANSWER):
            await self._demand_identity()
            return await driver.machines(), await driver.instances()

    async def _demand_identity(self) -> None:
        """Let nothing be done to a cluster that is not the one that was joined."""
        identity = await self.cluster.driver.identity()
        self.cluster.trusted = identity == self.cluster.identity
        if not self.cluster.trusted:
            raise DriverError(
                f"it says it is {identity!r}, but {self.cluster.identity!r} was joined: not touched"
            )

    def _record(
        self,
        connection: Connection,
        now: datetime,
        last_well: datetime,
        inventory: Sequence[SeenMachine],
        before: Sequence[Standing],
        listed: Sequence[SeenInstance],
        strange: Sequence[SeenInstance],
    ) -> list[Orphan] | None:
        """Gives the orphans as the store has them now; None if the passes have fallen to another process."""
        if not machines.watches(connection, self.cluster.id, self.presence.id):
            return None
        if inventory != self._written:
            machines.record_machines(connection, now, self.cluster.id, inventory)
        running = {one.name for one in listed if one.state == "running"}
        missing = [
            one.instance
            for one in before
            if one.resting and not one.unseen and one.driver_name not in running
        ]
        # One that was put off because its cluster did not answer need not run to be looked at now: it may
        # have stopped with its machine.
        returned = [
            one.instance for one in before if one.unseen and (one.put_off or one.driver_name in running)
        ]
        if missing:
            grace = timedelta(seconds=self.grace)
            sightings.miss(connection, missing, last_well, now, lost_at=now + grace, look_at=now)
        if returned:
            sightings.nudge(connection, returned, now)
        orphans = self._keep_orphans(connection, now, strange)
        machines.clear_well(connection, self.cluster.id)
        machines.seen_well(connection, now, self.cluster.id)
        return orphans

    def _keep_orphans(
        self, connection: Connection, now: datetime, strange: Sequence[SeenInstance]
    ) -> list[Orphan]:
        """Write who is unknown; asked once more, for one may have been adopted since it was listed."""
        known = sightings.known(connection, {one.name for one in strange}) if strange else {}
        found = [(one.name, " ".join(one.gpus), one.port or None) for one in strange if one.name not in known]
        for name in machines.keep_orphans(connection, now, self.cluster.id, found):
            log.error(
                "cluster %s runs %s, which this store does not know: not touched. What to do: vdserver "
                "instance orphans",
                self.cluster.name,
                name,
            )
        return machines.all_orphans(connection, self.cluster.id) if found else []

    async def _no_answer(self, last_well: datetime, why: str) -> None:
        """Nothing is known. After a while its machines count as offline and its instances as out of sight."""
        now = self.clock()
        self.cluster.trusted = False
        if (now - last_well).total_seconds() < self.machine_timeout or self._down:
            log.warning("cluster %s: %s", self.cluster.name, why)
            return
        log.error("cluster %s has not been seen well since %s: %s", self.cluster.name, last_well, why)
        self._down, self._written = await self.store.write(self._record_down, last_well, now), None

    def _record_down(self, connection: Connection, last_well: datetime, now: datetime) -> bool:
        if not machines.watches(connection, self.cluster.id, self.presence.id):
            return False
        machines.offline(connection, self.cluster.id)
        lost_at = now + timedelta(seconds=self.grace)
        keys = sightings.active_on(connection, self.cluster.id)
        sightings.miss(connection, keys, last_well, now, lost_at=lost_at, look_at=lost_at)
        return True

    async def _recall(self, names: Collection[str]) -> None:
        """Keep what orphans were made from. What is not told now is asked for again by the next pass."""
        told: dict[str, bytes] = {}

        async def ask(name: str) -> None:
            spec = await self.cluster.driver.recall(name)
            if spec is None:
                raise DriverError("its cluster cannot tell what it was made from")
            told[name] = seal_spec(self.vault, name, spec)

        await self._each(ask, names, self.recall_seconds)
        if told:
            await self.store.write(machines.keep_specs, self.cluster.id, told)

    async def _sweep(self, found: _Found) -> None:
        """Remove what nobody wants to be there."""
        for name in found.stray:
            log.warning("cluster %s still runs %s, which was released: removing it", self.cluster.name, name)
        for name in found.purge:
            log.warning("cluster %s: removing %s, as its operator decided", self.cluster.name, name)
        await self._each(self.cluster.driver.remove, {*found.stray, *found.purge}, _REMOVE)

    async def _each(
        self, deed: Callable[[str], Awaitable[None]], names: Collection[str], seconds: float
    ) -> None:
        """Do it for each, a few at a time, as far as the time allows; the next pass goes on from there."""
        loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE)
        end = loop.time() + seconds

        async def do(name: str) -> None:
            async with gate:
                if loop.time() >= end:
                    return
                try:
                    async with asyncio.timeout_at(end):
                        await deed(name)
                except (DriverError, TimeoutError) as error:
                    level = logging.INFO if self._vain[name] else logging.WARNING
                    why = str(error) or "it took too long"
                    log.log(level, "cluster %s: %s waits for the next pass: %s", self.cluster.name, name, why)
                    self._vain[name] += 1
                else:
                    self._vain.pop(name, None)

        await asyncio.gather(*(do(name) for name in sorted(names, key=lambda name: (self._vain[name], name))))
