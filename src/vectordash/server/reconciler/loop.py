"""Who is due: the endless loops that keep instances as they should be.

One gives instances that are due to `instance.py`, many at a time; one a cluster makes passes (`machine.py`);
one keeps house. All are woken by what happens, and look by themselves every few seconds in case nobody
told them. An error of the store or of a cluster never ends a loop.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from vectordash.server.clock import Clock
from vectordash.server.db.presence import Presence
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import DriverError
from vectordash.server.instances import leases, outcomes
from vectordash.server.instances import store as instances
from vectordash.server.instances.leases import Work
from vectordash.server.instances.rent import KEPT
from vectordash.server.instances.stock import Stock
from vectordash.server.reconciler.instance import Cluster, Surroundings, work_on
from vectordash.server.reconciler.machine import Watch
from vectordash.server.settings import Settings
from vectordash.server.vault import Vault
from vectordash.wire.errors import Unavailable

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_AT_ONCE = 64
"""Instances worked on at a time."""
_LOOK_AT_PRESENCE = 0.25
"""Seconds."""
_PAUSE = 1.0
"""Seconds to wait after an error of the store."""


@dataclass(slots=True)
class Reconciler:
    """The loops, and what they work with."""

    store: Store
    clock: Clock
    settings: Settings
    vault: Vault
    clusters: Sequence[Cluster]
    presence: Presence
    stock: Stock
    tell: Callable[[str], None]
    """Called with the key of an instance that something has become of: somebody may wait for it."""
    beat: datetime | None = None
    """When it last went round; `/readyz` looks at it."""
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _at_work: set[asyncio.Task[None]] = field(default_factory=set)

    def wake(self) -> None:
        """Something is due now."""
        self._woken.set()

    async def run(self) -> None:
        """Run until cancelled; what was begun is given up cleanly, to be taken up from the store."""
        clusters = {one.id: one for one in self.clusters}
        around = Surroundings(self.store, self.clock, self.vault, clusters, self.presence, self.tell)
        await self._survive(self._look_at_all)
        try:
            async with asyncio.TaskGroup() as loops:
                for cluster in self.clusters:
                    loops.create_task(self._watch(cluster))
                loops.create_task(self._give_out(around))
                loops.create_task(self._keep_house())
                loops.create_task(self._keep_stock())
                loops.create_task(self._put_tools_down())
        finally:
            await self._cancel_work()

    async def _cancel_work(self) -> None:
        for task in self._at_work:
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)

    async def _give_out(self, around: Surroundings) -> None:
        """Have everybody worked on who is due."""
        while True:
            self._woken.clear()
            self.beat = self.clock()
            pause = await self._survive(self._begin_those_due, around)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE if pause is None else pause):
                    await self._woken.wait()

    async def _put_tools_down(self) -> None:
        """Stop all work when this process may have been taken for dead: others may do it now."""
        while True:
            await asyncio.sleep(_LOOK_AT_PRESENCE)
            if not self.presence.sure and self._at_work:
                log.warning("the store is out of reach: %d instances wait", len(self._at_work))
                await self._cancel_work()
                self.presence.give_up()

    async def _begin_those_due(self, around: Surroundings) -> float:
        """Begin work on as many as there is room for; gives the seconds until the next is due."""
        room = _AT_ONCE - len(self._at_work)
        if room <= 0:
            return self.settings.poll
        keys = await self.store.read(leases.due, self.clock(), room)
        if keys and self.presence.sure:
            term = around.term()
            for work in await self.store.write(leases.lease, term, keys):
                self._begin(around, work, term.until)
        if len(keys) >= room:  # there may be more: whoever finishes next wakes us
            return self.settings.poll
        return self._until(await self.store.read(leases.next_due))

    def _until(self, due_at: datetime | None) -> float:
        """Seconds to sleep: until the next is due, but never longer than a poll, nor too short."""
        if due_at is None:
            return self.settings.poll
        return min(self.settings.poll, max(0.05, (due_at - self.clock()).total_seconds()))

    def _begin(self, around: Surroundings, work: Work, until: datetime) -> None:
        task = asyncio.create_task(work_on(around, work, until), name=f"instance {work.key}")
        self._at_work.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._at_work.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("instance %s: %s", work.key, error)
            self.tell(work.key)
            self._woken.set()

        task.add_done_callback(done)

    async def _watch(self, cluster: Cluster) -> None:
        """Pass over one cluster, when it has news and every few seconds."""
        settings = self.settings
        watch = Watch(
            self.store,
            self.clock,
            cluster,
            settings.grace,
            settings.machine_timeout,
            self.presence,
            self.vault,
        )
        while True:
            await self._survive(watch.look)
            self._woken.set()
            await self._survive(self._news, cluster)

    async def _news(self, cluster: Cluster) -> None:
        """Wait until something has changed on the cluster, or the next pass is due."""
        try:
            async with asyncio.timeout(self.settings.poll):
                await cluster.driver.changed()
        except TimeoutError:
            return
        except Exception:  # no news from there: the next pass will tell why
            await asyncio.sleep(self.settings.poll)
            raise

    async def _keep_house(self) -> None:
        """What is to be done now and then, each apart, so that one failing keeps no other from its turn."""
        while True:
            for chore in (self._end_those_over_time, self._forget_promises):
                await self._survive(chore)
            await asyncio.sleep(self.settings.poll)

    async def _keep_stock(self) -> None:
        """Keep key pairs ready; apart from the chores, since making 64 takes seconds."""
        while True:
            await self._survive(self.stock.refill)
            await asyncio.sleep(self.settings.poll)

    async def _end_those_over_time(self) -> None:
        if keys := await self.store.write(outcomes.end_those_over_time, self.clock()):
            for key in keys:
                self.tell(key)
            self._woken.set()

    async def _look_at_all(self) -> None:
        await self.store.write(leases.look_at_all, self.clock())

    async def _forget_promises(self) -> None:
        await self.store.write(instances.forget_promises, self.clock() - KEPT - timedelta(hours=1))

    async def _survive(
        self, deed: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Do it; an error is logged, and the loop goes on."""
        try:
            return await deed(*args, **kwargs)
        except Unavailable as error:
            log.warning("the store does not answer: %s", error)
        except DriverError as error:
            log.warning("a cluster does not answer: %s", error)
        except Exception:  # a loop that ends would leave every instance alone
            log.exception("%s failed", deed.__qualname__)
        return None
