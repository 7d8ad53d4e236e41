"""One pass over a cluster: its machines and GPUs as they are, and what runs there against what should.

One list call a cluster and pass, never one an instance. What is missing is judged against the store as it
was *before* the list, what is unknown against the store as it was *after* it, so that a rent or a release
in between is never mistaken for a fault. A pass decides nothing about an instance: it reports it out of
sight, and `instance.py` looks at it directly.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection

from vectordash.server.clock import Clock
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import DriverError, SeenInstance, SeenMachine
from vectordash.server.instances import sightings
from vectordash.server.instances.sightings import Standing
from vectordash.server.machines import store as machines
from vectordash.server.reconciler.instance import Cluster

log = logging.getLogger(__name__)

_ANSWER = 10.0
"""Seconds that a cluster has to answer a list."""
_REMOVE = 60.0


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
    _written: Sequence[SeenMachine] | None = field(default=None, init=False)
    """The inventory as last written: an unchanged one is not written again."""
    _down: bool = field(default=False, init=False)

    async def look(self) -> None:
        """Make one pass."""
        if not self.cluster.asked:
            now = self.clock()
            lost_at = now + timedelta(seconds=self.grace)
            await self.store.write(sightings.renew_grace, self.cluster.id, now, lost_at)
        stray = await self._pass()
        self.cluster.asked = True
        await self._sweep(stray)

    async def _pass(self) -> set[str]:
        """Gives the names of what runs although the store knows it as released."""
        began = self.clock()
        last_well = await self.store.read(machines.last_seen, self.cluster.id)
        before = await self.store.read(sightings.standing, self.cluster.id)
        try:
            inventory, listed = await self._ask()
        except (DriverError, TimeoutError) as error:
            await self._no_answer(last_well or began, str(error) or "it took too long")
            return set()
        # One that was released meanwhile was there before: the list may be older than its removal.
        unknown = {one.name for one in listed} - {one.driver_name for one in before}
        unknown -= await self.store.read(sightings.unreleased, self.cluster.id)
        stray = await self.store.read(sightings.known, unknown) if unknown else set()
        orphans = [one for one in listed if one.name in unknown - stray]
        await self.store.write(self._record, began, last_well or began, inventory, before, listed, orphans)
        self._written, self._down = inventory, False
        return stray

    async def _ask(self) -> tuple[Sequence[SeenMachine], Sequence[SeenInstance]]:
        driver = self.cluster.driver
        async with asyncio.timeout(_ANSWER):
            identity = await driver.identity()
            if identity != self.cluster.identity:
                self.cluster.trusted = False
                raise DriverError(
                    f"it says it is {identity!r}, but {self.cluster.identity!r} was joined: not touched"
                )
            self.cluster.trusted = True
            return await driver.machines(), await driver.instances()

    def _record(
        self,
        connection: Connection,
        now: datetime,
        last_well: datetime,
        inventory: Sequence[SeenMachine],
        before: Sequence[Standing],
        listed: Sequence[SeenInstance],
        orphans: Sequence[SeenInstance],
    ) -> None:
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
        found = [(one.name, " ".join(one.gpus), one.port or None) for one in orphans]
        for name in machines.keep_orphans(connection, now, self.cluster.id, found):
            log.error(
                "cluster %s runs %s, which this store does not know: not touched", self.cluster.name, name
            )
        machines.clear_well(connection, self.cluster.id)
        machines.seen_well(connection, now, self.cluster.id)

    async def _no_answer(self, last_well: datetime, why: str) -> None:
        """Nothing is known. After a while its machines count as offline and its instances as out of sight."""
        now = self.clock()
        self.cluster.trusted = False
        if (now - last_well).total_seconds() < self.machine_timeout or self._down:
            log.warning("cluster %s: %s", self.cluster.name, why)
            return
        log.error("cluster %s has not been seen well since %s: %s", self.cluster.name, last_well, why)
        await self.store.write(self._record_down, last_well, now)
        self._down, self._written = True, None

    def _record_down(self, connection: Connection, last_well: datetime, now: datetime) -> None:
        machines.offline(connection, self.cluster.id)
        lost_at = now + timedelta(seconds=self.grace)
        keys = sightings.active_on(connection, self.cluster.id)
        sightings.miss(connection, keys, last_well, now, lost_at=lost_at, look_at=lost_at)

    async def _sweep(self, stray: set[str]) -> None:
        """Remove what the store knows as released: a driver call that outlived its lease made it again."""
        await asyncio.gather(*(self._remove(name) for name in stray))

    async def _remove(self, name: str) -> None:
        log.warning("cluster %s still runs %s, which was released: removing it", self.cluster.name, name)
        try:
            async with asyncio.timeout(_REMOVE):
                await self.cluster.driver.remove(name)
        except (DriverError, TimeoutError) as error:
            log.warning("cluster %s: %s stays until the next pass: %s", self.cluster.name, name, error)
