"""One instance: load, observe, decide, act, record, until it rests or must wait.

Works under a lease, on one instance at a time; every driver call has a deadline shorter than what remains
of the lease. Called by `loop.py` for whoever is due, and cancelled by it when this process can no longer be
sure of its leases; what it leaves undone stays due in the store.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from vectordash.server.clock import Clock
from vectordash.server.db.presence import Presence
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Access, Driver, DriverError, PortBusy, Spec, StartFailed
from vectordash.server.instances import leases, outcomes
from vectordash.server.instances.leases import Attempt, Term, Work
from vectordash.server.reconciler.step import (
    Abandon,
    Desired,
    GiveUp,
    Lose,
    Recover,
    Release,
    Remove,
    Rest,
    Restart,
    Sight,
    Start,
    Step,
    Wait,
    step,
)
from vectordash.server.vault import Vault
from vectordash.wire.errors import Unavailable

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_LOOK = 5.0
"""Seconds that a direct look at an instance may take."""
_REMOVE = 60.0
"""Seconds that a removal may take; what is left after them is removed by the next one."""
_MARGIN = 2.0
"""Seconds of a lease that no driver call may use."""
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 30.0
"""A step that came to nothing is tried again after 0.25, 0.5, 1, … up to 30 s."""
_RESTART_PAUSE = 15.0
"""Seconds between two starts of a stopped instance, of which only a few are tried: a machine that has just
booted may need that long until its GPUs can be used."""
_BUSY = 0.1
"""Seconds until a busy store is asked again to record what a step came to."""
_MOST_STEPS = 12
"""In one lease; more than any life needs, so that a mistake cannot spin."""


@dataclass(slots=True)
class Cluster:
    """A joined cluster and the driver that speaks to it."""

    id: int
    name: str
    identity: str
    driver: Driver
    asked: bool = False
    """A pass has been made, whatever it came to; until then nothing is decided about what is on it."""
    trusted: bool = False
    """The last pass was answered, by the one that was joined. If not, nothing is touched, or waited for."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What working on an instance needs."""

    store: Store
    clock: Clock
    vault: Vault
    clusters: Mapping[int, Cluster]
    presence: Presence
    tell: Callable[[str], None] = lambda _: None
    """Called with the key of an instance that has become active: somebody may wait for it."""

    @property
    def lease_seconds(self) -> float:
        """Long enough for the longest start and a removal."""
        longest = max((one.driver.start_deadline for one in self.clusters.values()), default=15.0)
        return longest + _REMOVE + 2 * _LOOK + _MARGIN

    def term(self) -> Term:
        """For whom and how long a lease that is taken now would be."""
        now = self.clock()
        until = now + timedelta(seconds=self.lease_seconds)
        return Term(self.presence.id, now, until, self.deadlines())

    def deadlines(self) -> dict[int, datetime]:
        """By when a start that begins now must have come to a login, on each cluster."""
        now = self.clock()
        return {one.id: now + timedelta(seconds=one.driver.start_deadline) for one in self.clusters.values()}


class _Again(Exception):
    """A step came to nothing, but nothing is lost: pause, at least that long, then decide anew."""

    def __init__(self, message: str, *, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


async def work_on(around: Surroundings, work: Work, until: datetime) -> None:
    """Bring one instance, leased until then, as far as it goes now. Raises only what the store raises."""
    await _Shift(around, until, work).do()


@dataclass(slots=True)
class _Round:
    """What became of one step for each attempt."""

    came_to: bool = True
    """Nothing failed and nothing is waited for."""
    moved: bool = False
    """Something changed: load and look again."""
    pause: float = 0.0
    """Seconds to wait at least, if it came to nothing."""
    look_at: datetime | None = None


@dataclass(slots=True)
class _Shift:
    """One lease of one instance, and what is done under it."""

    around: Surroundings
    until: datetime
    work: Work
    """The instance as it was last loaded; every decision is made on this."""
    _given_back: bool = False
    """The lease ended with the last record."""

    async def do(self) -> None:
        """Step until nothing is to be done now, then give the lease back."""
        try:
            last = await self._steps()
        except asyncio.CancelledError:
            now = self.around.clock()
            await self.around.store.write(leases.finish, self.work, now, now, came_to=True)
            raise
        except Unavailable as error:
            log.warning("instance %s: the store does not answer: %s", self.work.key, error)
            last = _Round(came_to=False)
        except Exception:  # a mistake of ours must not keep the instance from being tried again
            log.exception("instance %s: a step failed in a way that nobody foresaw", self.work.key)
            last = _Round(came_to=False)
        if self._given_back:
            return
        now = self.around.clock()
        look_at = last.look_at
        if not last.came_to:
            pause = max(last.pause, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self.work.failures, 10)))
            look_at = _earlier(look_at, now + timedelta(seconds=pause))
        await self._record(leases.finish, self.work, look_at, now, came_to=last.came_to)

    async def _steps(self) -> _Round:
        for _ in range(_MOST_STEPS):
            this = _Round()
            for attempt in self.work.attempts:
                await self._try(this, attempt)
                if self._given_back:
                    return this
            if not this.moved:
                return this
            fresh = await self._record(leases.reload, self.work, self.around.deadlines())
            if fresh is None:
                self._given_back = True
                return this
            self.work = fresh
        log.warning("instance %s does not come to rest", self.work.key)
        return _Round(came_to=False)

    async def _try(self, this: _Round, attempt: Attempt) -> None:
        try:
            next_step = await self._step(attempt)
        except _Again as why:
            log.info("instance %s, attempt %d: %s", self.work.key, attempt.number, why)
            this.came_to, this.pause = False, max(this.pause, why.pause)
        except DriverError as error:
            log.warning("instance %s, attempt %d: %s", self.work.key, attempt.number, error)
            this.came_to = False
        else:
            if isinstance(next_step, Wait):
                this.came_to = False
                this.look_at = _earlier(this.look_at, next_step.until)
            elif not isinstance(next_step, Rest):
                this.moved = True

    async def _step(self, attempt: Attempt) -> Step:
        """Observe, decide, act and record, once, for one attempt."""
        cluster = self.around.clusters.get(attempt.cluster_id)
        if cluster is None or not cluster.asked:
            return Wait()
        sight = await self._observe(cluster, attempt)
        next_step = step(self._desired(attempt), sight, self.around.clock())
        await self._act(cluster, attempt, next_step)
        return next_step

    def _desired(self, attempt: Attempt) -> Desired:
        work = self.work
        return Desired(
            wanted=work.ended_at is None and attempt.number == work.attempt and not attempt.failed,
            active=work.active_at is not None,
            deadline=attempt.deadline or self.around.clock(),
            again=attempt.again,
            unseen=work.unseen_since is not None,
            lost_at=work.lost_at,
            starts_failed=work.restarts,
        )

    async def _observe(self, cluster: Cluster, attempt: Attempt) -> Sight:
        """Look at it directly. A cluster that is not the one that was joined shows nothing."""
        if not cluster.trusted:
            return "unknown"
        try:
            async with self._within(_LOOK):
                seen = await cluster.driver.instance(attempt.driver_name)
        except (DriverError, TimeoutError) as error:
            log.info("instance %s cannot be looked at: %s", self.work.key, error)
            return "unknown"
        return "absent" if seen is None else seen.state

    async def _act(self, cluster: Cluster, attempt: Attempt, next_step: Step) -> None:
        vault, now = self.around.vault, self.around.clock()
        match next_step:
            case Start(by):
                await self._start(cluster.driver, attempt, by)
            case Restart():
                await self._restart(cluster.driver, attempt)
            case Recover():
                await self._record(outcomes.recover, self.work, attempt, now, "It is in sight again")
            case Remove():
                await self._remove(cluster.driver, attempt)
            case Release():
                self._given_back = await self._record(outcomes.release, vault, self.work, attempt, now)
            case GiveUp(why, transient):
                await self._failed(attempt, why, transient=transient)
            case Abandon(why):
                await self._record(outcomes.abandon, self.work, attempt, why, now)
            case Lose(why):
                await self._record(outcomes.lose, self.work, attempt, why, now)
            case Wait() | Rest():
                pass

    async def _start(self, driver: Driver, attempt: Attempt, by: datetime) -> None:
        """Make it run and log in as the renter will; then billing begins."""
        seconds = max(0.0, (by - self.around.clock()).total_seconds())
        cut_short = self._left() < seconds
        try:
            async with self._within(seconds):
                await driver.ensure(_spec(self.around.vault, self.work, attempt))
                await driver.login(_access(self.around.vault, driver.user, self.work, attempt))
        except PortBusy:
            await self._record(outcomes.move_port, self.around.vault, self.work, attempt, self.around.clock())
        except StartFailed as error:
            await self._failed(attempt, str(error), transient=error.transient)
        except TimeoutError as error:
            if cut_short:
                raise _Again("its lease ended before its deadline") from error
            why = f"it could not be logged in to within {driver.start_deadline:.0f} s"
            await self._failed(attempt, why, transient=True)
        else:
            self._given_back = await self._record(outcomes.activate, self.work, attempt, self.around.clock())
            self.around.tell(self.work.key)

    async def _failed(self, attempt: Attempt, why: str, *, transient: bool) -> None:
        vault, now = self.around.vault, self.around.clock()
        failure = outcomes.Failure(why, transient=transient)
        await self._record(outcomes.fail, vault, self.work, attempt, failure, now)

    async def _restart(self, driver: Driver, attempt: Attempt) -> None:
        """Start a stopped one again. No login is tried: the renter may have changed who may log in."""
        try:
            async with self._within(driver.start_deadline):
                await driver.ensure(_spec(self.around.vault, self.work, attempt))
        except (StartFailed, TimeoutError) as error:
            why = str(error) or "it took too long"
            await self._record(outcomes.restart_failed, self.work, attempt, why, self.around.clock())
            raise _Again(why, pause=_RESTART_PAUSE) from error
        how = "It had stopped and was started again"
        await self._record(outcomes.recover, self.work, attempt, self.around.clock(), how)

    async def _remove(self, driver: Driver, attempt: Attempt) -> None:
        try:
            async with self._within(_REMOVE):
                await driver.remove(attempt.driver_name)
        except TimeoutError as error:
            raise _Again("it could not be removed in time") from error

    def _left(self) -> float:
        """Seconds that driver calls may still take."""
        return (self.until - self.around.clock()).total_seconds() - _MARGIN

    def _within(self, seconds: float) -> asyncio.Timeout:
        """Give a driver call this long, but less than what remains of the lease."""
        if (left := self._left()) <= 0:
            raise _Again("its lease is nearly over")
        return asyncio.timeout(min(seconds, left))

    async def _record(
        self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Write what was done. A busy store is asked again: what was done is worth waiting for."""
        while True:
            try:
                return await self.around.store.write(change, *args, **kwargs)
            except Unavailable:
                if self._left() <= 0:
                    raise
            await asyncio.sleep(_BUSY)


def _spec(vault: Vault, work: Work, attempt: Attempt) -> Spec:
    return Spec(
        name=attempt.driver_name,
        hostname=attempt.hostname,
        image=work.image,
        machine=attempt.machine,
        gpus=(attempt.gpu_uuid,),
        cores=attempt.cores,
        ram=attempt.ram,
        storage=attempt.storage,
        address=attempt.bound_address,
        port=attempt.port,
        authorized_keys=(work.public_key,),
        host_key=vault.open(attempt.host_key or b"", attempt.driver_name),
    )


def _access(vault: Vault, user: str, work: Work, attempt: Attempt) -> Access:
    return Access(
        address=attempt.probe_address,
        port=attempt.port,
        user=user,
        host_key=attempt.host_public_key,
        pem=vault.open(work.pem or b"", work.public_key),
    )


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((moment for moment in (one, other) if moment is not None), default=None)
