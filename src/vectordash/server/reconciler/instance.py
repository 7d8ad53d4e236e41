"""One instance: load, observe, decide, act, record, until it rests or must wait.

Works under a lease, on one instance at a time; every driver call has a deadline shorter than what remains
of the lease. Called by `loop.py` for whoever is due; what it leaves undone stays due in the store.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from vectordash.server.clock import Clock
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import (
    Access,
    Driver,
    DriverError,
    PortBusy,
    Spec,
    StartFailed,
    Unreachable,
)
from vectordash.server.instances import progress
from vectordash.server.instances.lifecycle import MOST_RESTARTS
from vectordash.server.instances.progress import Attempt, Work
from vectordash.server.reconciler.step import (
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

_LOOK = 5.0
"""Seconds that a direct look at an instance may take."""
_REMOVE = 60.0
"""Seconds that a removal may take; what is left after them is removed by the next one."""
_MARGIN = 2.0
"""Seconds of a lease that no driver call may use."""
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 30.0
"""A step that came to nothing is tried again after 0.25, 0.5, 1, … up to 30 s."""
_MOST_STEPS = 12
"""In one lease; more than any life needs, so that a mistake cannot spin."""


@dataclass(slots=True)
class Cluster:
    """A joined cluster and the driver that speaks to it."""

    id: int
    name: str
    identity: str
    driver: Driver
    trusted: bool = False
    """It has said that it is the one that was joined; until then nothing is touched."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What working on an instance needs."""

    store: Store
    clock: Clock
    vault: Vault
    clusters: Mapping[int, Cluster]

    @property
    def lease_seconds(self) -> float:
        """Long enough for the longest start and a removal."""
        longest = max((one.driver.start_deadline for one in self.clusters.values()), default=15.0)
        return longest + _REMOVE + 2 * _LOOK + _MARGIN


class _Again(Exception):
    """A step came to nothing, but nothing is lost: pause, then decide anew."""


async def work_on(around: Surroundings, key: str) -> None:
    """Bring one instance as far as it goes now. Raises nothing but what the store raises."""
    now = around.clock()
    until = now + timedelta(seconds=around.lease_seconds)
    work = await around.store.write(progress.lease, key, now, until)
    if work is None:
        return
    try:
        look_at, came_to = await _steps(around, work, until)
    except Unavailable:
        raise
    except Exception:  # a mistake of ours must not keep the instance from being tried again
        log.exception("instance %s: a step failed in a way that nobody foresaw", key)
        look_at, came_to = None, False
    now = around.clock()
    if not came_to:
        pause = now + timedelta(seconds=min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(work.failures, 10)))
        look_at = pause if look_at is None else min(pause, look_at)
    await around.store.write(progress.finish, work, look_at, now, came_to=came_to)


async def _steps(around: Surroundings, work: Work, until: datetime) -> tuple[datetime | None, bool]:
    """Step until all attempts rest or wait: when to look again, and whether all went well."""
    for _ in range(_MOST_STEPS):
        look_at: datetime | None = None
        came_to = True
        moved = False
        for attempt in work.attempts:
            try:
                next_step = await _step(around, work, attempt, until)
            except _Again as why:
                log.info("instance %s, attempt %d: %s", work.key, attempt.number, why)
                came_to = False
                continue
            except DriverError as error:
                log.warning("instance %s, attempt %d: %s", work.key, attempt.number, error)
                came_to = False
                continue
            if isinstance(next_step, Wait):
                came_to = False
                look_at = _earlier(look_at, next_step.until)
            moved = moved or not isinstance(next_step, Wait | Rest)
        if not moved:
            return look_at, came_to
        if (fresh := await around.store.read(progress.reload, work)) is None:
            return None, True
        work = fresh
    return around.clock(), False


async def _step(around: Surroundings, work: Work, attempt: Attempt, until: datetime) -> Step:
    """Observe, decide, act and record, once, for one attempt."""
    cluster = around.clusters.get(attempt.cluster_id)
    sight = await _observe(cluster, attempt)
    now = around.clock()
    deadline = attempt.deadline
    if deadline is None and cluster is not None:
        deadline = now + timedelta(seconds=cluster.driver.start_deadline)
        await around.store.write(progress.begin, attempt.id, deadline)
    next_step = step(_desired(work, attempt, deadline or now), sight, now)
    if cluster is not None:
        await _act(around, cluster, work, attempt, next_step, until)
    return next_step


def _desired(work: Work, attempt: Attempt, deadline: datetime) -> Desired:
    return Desired(
        wanted=work.ended_at is None and attempt.number == work.attempt and not attempt.failed,
        active=work.active_at is not None,
        deadline=deadline,
        unseen=work.unseen_since is not None,
        lost_at=work.lost_at,
        starts_failed=work.restarts,
        most_starts=MOST_RESTARTS,
    )


async def _observe(cluster: Cluster | None, attempt: Attempt) -> Sight:
    """Look at it directly. A cluster that is not the one that was joined shows nothing."""
    if cluster is None or not cluster.trusted:
        return "unknown"
    try:
        async with asyncio.timeout(_LOOK):
            seen = await cluster.driver.instance(attempt.driver_name)
    except (Unreachable, TimeoutError):
        return "unknown"
    return "absent" if seen is None else seen.state


async def _act(
    around: Surroundings, cluster: Cluster, work: Work, attempt: Attempt, next_step: Step, until: datetime
) -> None:
    store, now = around.store, around.clock()
    match next_step:
        case Start(by):
            await _start(around, cluster, work, attempt, by, until - timedelta(seconds=_MARGIN))
        case Restart():
            await _restart(around, cluster, work, attempt)
        case Recover():
            await store.write(progress.recover, work, attempt, now, "It is in sight again")
        case Remove():
            await _remove(cluster, attempt)
        case Release():
            await store.write(progress.release, around.vault, work, attempt, now)
        case GiveUp(why):
            await store.write(progress.fail, around.vault, work, attempt, why, now, transient=True)
        case Lose(why):
            await store.write(progress.lose, work, attempt, why, now)
        case Wait() | Rest():
            pass


async def _remove(cluster: Cluster, attempt: Attempt) -> None:
    try:
        async with asyncio.timeout(_REMOVE):
            await cluster.driver.remove(attempt.driver_name)
    except TimeoutError as error:
        raise _Again(f"it could not be removed within {_REMOVE:.0f} s") from error


async def _start(
    around: Surroundings,
    cluster: Cluster,
    work: Work,
    attempt: Attempt,
    by: datetime,
    lease_until: datetime,
) -> None:
    """Make it run and log in as the renter will; then billing begins."""
    store, driver = around.store, cluster.driver
    seconds = max(0.0, (min(by, lease_until) - around.clock()).total_seconds())
    try:
        async with asyncio.timeout(seconds):
            await driver.ensure(_spec(around.vault, work, attempt))
            await driver.login(_access(around.vault, driver.user, work, attempt))
    except PortBusy:
        await store.write(progress.move_port, around.vault, work, attempt, around.clock())
    except TimeoutError as error:
        if lease_until < by:
            raise _Again("its lease ended before its deadline") from error
        why = f"it could not be logged in to within {driver.start_deadline:.0f} s"
        await _failed(around, work, attempt, why, transient=True)
    except StartFailed as error:
        await _failed(around, work, attempt, str(error), transient=error.transient)
    else:
        await store.write(progress.activate, work, attempt, around.clock())


async def _failed(around: Surroundings, work: Work, attempt: Attempt, why: str, *, transient: bool) -> None:
    await around.store.write(
        progress.fail, around.vault, work, attempt, why, around.clock(), transient=transient
    )


async def _restart(around: Surroundings, cluster: Cluster, work: Work, attempt: Attempt) -> None:
    """Start a stopped one again. No login is tried: the renter may have changed who may log in."""
    try:
        async with asyncio.timeout(cluster.driver.start_deadline):
            await cluster.driver.ensure(_spec(around.vault, work, attempt))
    except (StartFailed, TimeoutError) as error:
        why = str(error) or "it took too long"
        await around.store.write(progress.restart_failed, work, attempt, why, around.clock())
        raise _Again(why) from error
    how = "It had stopped and was started again"
    await around.store.write(progress.recover, work, attempt, around.clock(), how)


def _spec(vault: Vault, work: Work, attempt: Attempt) -> Spec:
    return Spec(
        name=attempt.driver_name,
        hostname=work.name.replace("_", "-"),
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
