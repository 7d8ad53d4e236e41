"""Who may work on an instance, and what becomes of work that was interrupted, refused or overtaken."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from cloud import NOON, Cloud, work_on
from sights import attempts_of, demand_order, reach, row_of
from vectordash.server.db import presence
from vectordash.server.db.session import Store
from vectordash.server.drivers.fake import Fault
from vectordash.server.instances import leases, outcomes, sightings
from vectordash.server.instances import store as instances
from vectordash.server.instances.leases import Term, Work
from vectordash.wire.errors import Unavailable

pytestmark = pytest.mark.asyncio

LATER = NOON + timedelta(seconds=90)


BUSY = outcomes.Failure("busy", transient=True)


async def lease(
    cloud: Cloud, key: str, now: datetime = NOON, until: datetime = LATER, deadline: datetime | None = None
) -> Work | None:
    """Take the lease of one instance, if it can be had."""
    deadlines = {} if deadline is None else {cloud.cluster.id: deadline}
    term = Term(cloud.plane.presence.id, now, until, deadlines)
    (work,) = await cloud.plane.store.write(leases.lease, term, [key]) or [None]
    return work


@dataclass
class MoodyStore:
    """A store that refuses some changes some times before it makes them."""

    store: Store
    refusals: Counter[str]
    asked: Counter[str] = field(default_factory=Counter)

    async def write(self, change: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Store`."""
        self.asked[change.__name__] += 1
        if self.refusals[change.__name__] > 0:
            self.refusals[change.__name__] -= 1
            raise Unavailable("2000 changes are waiting")
        return await self.store.write(change, *args, **kwargs)


async def test_of_two_workers_one_works(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]

    await asyncio.gather(work_on(cloud.around(), key), work_on(cloud.around(), key))

    assert (cloud.driver.calls["ensure"], cloud.driver.calls["login"]) == (1, 1)
    assert (await cloud.plane.store.read(row_of, key)).lease_version == 1
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_lease_is_given_for_what_is_due_and_not_before(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    store = cloud.plane.store
    early = NOON - timedelta(microseconds=1)

    assert await lease(cloud, key, early) is None
    work = await lease(cloud, key)
    assert work is not None
    assert await lease(cloud, key, LATER - timedelta(seconds=1)) is None
    assert await store.read(leases.due, LATER - timedelta(seconds=1), 10) == []
    assert await store.read(leases.next_due) == LATER
    assert await store.read(leases.due, LATER, 10) == [key]
    await store.write(leases.finish, work, None, NOON, came_to=True)
    assert await lease(cloud, key, LATER) is None


async def test_a_worker_that_was_overtaken_writes_nothing(cloud: Cloud) -> None:
    """It hangs in a start, its lease runs out, another one gives up; then its login works after all."""
    cloud.driver.faults = [Fault("ensure", delay=1.0, gpu="GPU-m1-0")]
    key = (await cloud.rent())["key"]
    slow = asyncio.create_task(work_on(cloud.around(), key))
    await reach(cloud.driver, "ensure")

    cloud.clock.move(seconds=200)
    await cloud.settle()
    assert [one.gpu_id for one in await cloud.plane.store.read(attempts_of, key)] == [1, 2]
    before = await cloud.plane.store.read(row_of, key)
    await slow

    assert await cloud.plane.store.read(row_of, key) == before
    assert len(cloud.driver.there) == 2, "what the slow one made"
    await cloud.settle()
    assert (await cloud.show(key))["status"] == "active"
    demand_order(cloud.plane.store, cloud.driver)


RECORDS: dict[str, Callable[[Connection, Any, leases.Work, leases.Attempt], object]] = {
    "activate": lambda c, _, work, one: outcomes.activate(c, work, one, LATER),
    "recover": lambda c, _, work, one: outcomes.recover(c, work, one, LATER, "It is back"),
    "restart_failed": lambda c, _, work, one: outcomes.restart_failed(c, work, one, "why", LATER),
    "lose": lambda c, _, work, one: outcomes.lose(c, work, one, "why", LATER),
    "fail": lambda c, v, work, one: outcomes.fail(c, v, work, one, BUSY, LATER),
    "move_port": lambda c, v, work, one: outcomes.move_port(c, v, work, one, LATER),
    "release": lambda c, v, work, one: outcomes.release(c, v, work, one, LATER),
    "finish": lambda c, _, work, __: leases.finish(c, work, None, LATER, came_to=True),
}


@pytest.mark.parametrize("record", RECORDS)
async def test_without_the_lease_nothing_is_recorded(cloud: Cloud, record: str) -> None:
    key = (await cloud.rent())["key"]
    store, vault = cloud.plane.store, cloud.plane.reconciler.vault
    work = await lease(cloud, key, deadline=LATER)
    assert work is not None
    overtaken = replace(work, version=work.version - 1)

    def everything(connection: Connection) -> list[Any]:
        events = instances.events_of(connection, key)
        return [row_of(connection, key), attempts_of(connection), events]

    before = await store.read(everything)
    await store.write(RECORDS[record], vault, overtaken, work.attempts[0])

    assert await store.read(everything) == before
    assert await store.write(leases.reload, overtaken, {}) is None


async def test_a_wish_during_a_lease_is_not_lost_though_the_clock_stands_still(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    store = cloud.plane.store
    work = await lease(cloud, key)
    assert work is not None

    await cloud.call("DELETE", f"/api/instances/{key}")
    await store.write(leases.finish, work, None, NOON, came_to=True)

    assert await store.read(leases.due, NOON, 10) == [key]


async def test_an_activation_does_not_swallow_a_wish(cloud: Cloud) -> None:
    """Reported out of sight by a pass in the very moment of its activation: it is looked at again."""
    key = (await cloud.rent())["key"]
    store = cloud.plane.store
    work = await lease(cloud, key)
    assert work is not None
    await store.write(sightings.nudge, [key], NOON)

    assert await store.write(outcomes.activate, work, work.attempts[0], NOON)

    row = await store.read(row_of, key)
    assert (row.active_at, row.lease_until, row.due_at) == (NOON, None, NOON)


async def test_a_gpu_that_was_to_be_tried_again_is_not_if_its_instance_ends_before_it_is_cleared(
    cloud: Cloud,
) -> None:
    """Ended after the worker has loaded it for the last time."""
    await cloud.change_listing(2, listed=False)
    key = (await cloud.rent())["key"]
    store, vault = cloud.plane.store, cloud.plane.reconciler.vault
    work = await lease(cloud, key)
    assert work is not None
    await store.write(outcomes.fail, vault, work, work.attempts[0], BUSY, NOON)
    work = await store.write(leases.reload, work, {})
    assert work is not None
    await cloud.call("DELETE", f"/api/instances/{key}")

    assert await store.write(outcomes.release, vault, work, work.attempts[0], NOON)

    assert len(await store.read(attempts_of, key)) == 1
    await cloud.settle()
    demand_order(store, cloud.driver)


async def test_after_an_unforeseen_error_it_is_tried_again_ever_later(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("ensure", RuntimeError("nobody foresaw this"), times=5)]
    cloud.driver.start_deadline = 60.0
    key = (await cloud.rent())["key"]

    pauses = []
    for _ in range(5):
        await cloud.work()
        row = await cloud.plane.store.read(row_of, key)
        assert row.lease_until is None
        pauses.append((row.due_at - cloud.clock()).total_seconds())
        cloud.clock.now = row.due_at

    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0]
    await cloud.settle()
    row = await cloud.plane.store.read(row_of, key)
    assert (row.active_at, row.due_at, row.failures) == (cloud.clock(), None, 0)


@pytest.mark.parametrize("change", ["activate", "release", "reload", "finish", "fail"])
async def test_what_was_done_is_recorded_though_the_store_is_busy_for_a_while(
    cloud: Cloud, change: str
) -> None:
    cloud.driver.faults = [Fault("login", delay=0.0), Fault("ensure", RuntimeError("once"))]
    if change == "fail":
        cloud.driver.start_deadline = 0.01
        cloud.driver.faults = [Fault("login", delay=float("inf"), gpu="GPU-m1-0")]
    key = (await cloud.rent())["key"]
    moody = MoodyStore(cloud.plane.store, Counter({change: 1}))

    for _ in range(3):
        await work_on(cloud.around(moody), key)
        cloud.clock.move(seconds=1)
    if change in {"release", "reload"}:
        await cloud.call("DELETE", f"/api/instances/{key}")
        await work_on(cloud.around(moody), key)

    assert moody.asked[change] >= 2
    assert moody.refusals[change] == 0
    await cloud.settle()
    demand_order(cloud.plane.store, cloud.driver)


async def test_no_call_is_begun_that_its_lease_would_not_cover(cloud: Cloud) -> None:
    """A start takes nearly the whole lease; the removal of what it left waits for another lease."""
    cloud.driver.faults = [Fault("ensure", delay=0.05, gpu="GPU-m1-0"), Fault("login", RuntimeError())]
    key = (await cloud.rent())["key"]
    working = asyncio.create_task(work_on(cloud.around(), key))
    await reach(cloud.driver, "ensure")
    await cloud.call("DELETE", f"/api/instances/{key}")
    cloud.driver.faults.clear()

    cloud.clock.move(seconds=cloud.around().lease_seconds - 1)
    await working

    assert cloud.driver.calls["remove"] == 0
    cloud.clock.move(seconds=1)
    await cloud.settle()
    demand_order(cloud.plane.store, cloud.driver)


@pytest.mark.parametrize("process", ["buried", "left", "cleared"])
async def test_the_leases_of_a_process_end_with_it(cloud: Cloud, process: str) -> None:
    key = (await cloud.rent())["key"]
    store, holder = cloud.plane.store, cloud.plane.presence.id
    work = await lease(cloud, key)
    assert work is not None
    assert await store.read(leases.due, NOON, 10) == []

    if process == "buried":
        assert await store.write(presence.bury, holder, 0)
    elif process == "left":
        await store.write(presence.leave, holder)
    else:
        await store.write(presence.clear)

    assert await store.read(leases.due, NOON, 10) == [key]
    assert await lease(cloud, key) is None, "a dead one takes none"
    cloud.plane.presence.id = "another"
    cloud.plane.presence.enter()
    other = await lease(cloud, key)
    assert other is not None
    assert other.version == work.version + 1
    assert await store.write(leases.reload, work, {}) is None


async def test_a_cancelled_worker_gives_its_lease_back_and_leaves_what_it_did(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("login", delay=float("inf"))]
    key = (await cloud.rent())["key"]
    working = asyncio.create_task(work_on(cloud.around(), key))
    await reach(cloud.driver, "login")

    working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    assert (await cloud.plane.store.read(row_of, key)).lease_until is None
    await cloud.settle()
    assert (await cloud.show(key))["status"] == "active"
    demand_order(cloud.plane.store, cloud.driver)
