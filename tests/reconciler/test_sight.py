"""An active instance that stops, vanishes or cannot be seen: what is kept, what is lost, what is charged."""

from datetime import datetime, timedelta

import pytest
import pytest_asyncio

from cloud import NOON, Cloud
from sights import demand_order, gpu, row_of
from vectordash.server.drivers.base import DriverError, StartFailed, Unreachable
from vectordash.server.drivers.fake import Fault

pytestmark = pytest.mark.asyncio

FOREVER = float("inf")


@pytest_asyncio.fixture
async def key(cloud: Cloud) -> str:
    """An instance that has been active since noon, and was seen well two and a half hours later."""
    made = await cloud.rent()
    await cloud.settle()
    cloud.clock.move(hours=2, minutes=30)
    await cloud.look()
    return str(made["key"])


def name(cloud: Cloud) -> str:
    (only,) = cloud.driver.there
    return only


async def ended(cloud: Cloud, key: str) -> tuple[datetime | None, str | None]:
    row = await cloud.plane.store.read(row_of, key)
    return row.ended_at, row.end_reason


LAST_WELL = NOON + timedelta(hours=2, minutes=30)


async def test_at_rest_a_pass_asks_once_for_all_and_looks_at_nobody(cloud: Cloud, key: str) -> None:
    cloud.driver.calls.clear()

    await cloud.settle()

    assert cloud.driver.calls == {"identity": 1, "machines": 1, "instances": 1}


async def test_vanished_it_is_lost_when_last_seen_well_and_completed_hours_are_charged(
    cloud: Cloud, key: str
) -> None:
    cloud.clock.move(minutes=20)
    cloud.driver.vanish(name(cloud))

    await cloud.settle()

    shown = await cloud.show(key)
    assert await ended(cloud, key) == (LAST_WELL, "lost")
    assert (shown["status"], shown["error_occurred"]) == ("complete", True)
    assert (shown["duration"], shown["estimated_charge"]) == (2, 1.28)
    assert await cloud.events(key) == ["rented", "active", "unseen", "ended", "released"]
    demand_order(cloud.plane.store, cloud.driver)


async def test_the_gpu_of_a_lost_instance_is_cleared_once_it_is_seen_free_and_well(
    cloud: Cloud, key: str
) -> None:
    cloud.driver.vanish(name(cloud))
    await cloud.look()
    await cloud.work()
    assert (await cloud.plane.store.read(gpu, 1)).suspect

    await cloud.look()

    assert not (await cloud.plane.store.read(gpu, 1)).suspect


async def test_a_list_that_lacks_it_is_no_evidence(cloud: Cloud, key: str) -> None:
    cloud.driver.hidden = {name(cloud)}
    cloud.clock.move(minutes=1)

    for _ in range(3):
        await cloud.look()
        await cloud.work()
        assert (await cloud.show(key))["status"] == "active"
        assert (await cloud.plane.store.read(row_of, key)).unseen_since is None
        cloud.clock.move(minutes=20)


async def test_stopped_it_is_started_again_and_the_gap_is_free(cloud: Cloud, key: str) -> None:
    cloud.clock.move(minutes=20)
    cloud.driver.stop(name(cloud))
    cloud.clock.move(minutes=30)
    logins = cloud.driver.calls["login"]

    await cloud.settle()

    row = await cloud.plane.store.read(row_of, key)
    assert cloud.driver.there[name(cloud)].running
    assert cloud.driver.calls["login"] == logins, "its renter may have changed who may log in"
    assert (row.unseen_since, row.lost_at, row.free_seconds) == (None, None, 50 * 60)
    cloud.clock.move(minutes=30)
    shown = await cloud.show(key)
    assert (shown["status"], shown["duration"]) == ("active", 3), "3:50 less 0:50 out of sight"


async def test_three_failed_starts_of_a_stopped_instance_lose_it(cloud: Cloud, key: str) -> None:
    cloud.driver.stop(name(cloud))
    cloud.driver.faults = [Fault("ensure", StartFailed("no GPU"), times=3)]

    starts = []
    for _ in range(4):
        await cloud.settle()
        starts.append(cloud.driver.calls["ensure"])
        assert (await cloud.show(key))["status"] == ("complete" if len(starts) == 4 else "active")
        cloud.clock.move(seconds=15)

    assert starts == [2, 3, 4, 4]
    assert await ended(cloud, key) == (LAST_WELL, "lost")
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_start_that_works_forgets_those_that_failed(cloud: Cloud, key: str) -> None:
    for _ in range(3):
        cloud.driver.stop(name(cloud))
        cloud.driver.faults = [Fault("ensure", StartFailed("no GPU"), times=2)]
        for _ in range(4):
            await cloud.settle()
            cloud.clock.move(seconds=15)

    row = await cloud.plane.store.read(row_of, key)
    assert (row.ended_at, row.restarts) == (None, 0)
    assert cloud.driver.there[name(cloud)].running


async def test_a_restart_that_hangs_counts_as_failed(cloud: Cloud, key: str) -> None:
    cloud.driver.stop(name(cloud))
    cloud.driver.start_deadline = 0.02
    cloud.driver.faults = [Fault("ensure", delay=FOREVER)]

    await cloud.settle()

    assert (await cloud.plane.store.read(row_of, key)).restarts == 1


async def test_within_the_grace_it_stays_active_and_is_charged_to_when_last_seen_well(
    cloud: Cloud, key: str
) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(minutes=5)
    await cloud.settle()
    cloud.clock.move(minutes=9, seconds=59)
    await cloud.settle()

    shown = await cloud.show(key)
    assert (shown["status"], shown["duration"], shown["estimated_charge"]) == ("active", 3, 1.92)
    assert (await cloud.plane.store.read(row_of, key)).unseen_since == LAST_WELL


async def test_a_short_silence_of_a_cluster_is_not_even_noticed(cloud: Cloud, key: str) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(seconds=29)
    await cloud.settle()
    cloud.driver.reachable = True
    await cloud.settle()

    assert (await cloud.plane.store.read(row_of, key)).free_seconds == 0
    assert await cloud.events(key) == ["rented", "active"]


async def test_back_in_sight_it_goes_on_and_the_gap_is_free(cloud: Cloud, key: str) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(minutes=5)
    await cloud.settle()
    cloud.clock.move(minutes=5)
    cloud.driver.reachable = True

    await cloud.settle()

    row = await cloud.plane.store.read(row_of, key)
    assert (row.unseen_since, row.lost_at, row.free_seconds) == (None, None, 600)
    assert await cloud.events(key) == ["rented", "active", "unseen", "recovered"]
    demand_order(cloud.plane.store, cloud.driver)


async def test_out_of_reach_beyond_the_grace_it_is_lost(cloud: Cloud, key: str) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(minutes=5)
    await cloud.settle()
    cloud.clock.move(minutes=10)

    await cloud.settle()

    shown = await cloud.show(key)
    assert await ended(cloud, key) == (LAST_WELL, "lost")
    assert (shown["error_occurred"], shown["duration"]) == (True, 2)
    cloud.driver.reachable = True
    cloud.clock.move(seconds=30)
    await cloud.settle()
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_machine_that_comes_back_from_a_power_cut_has_its_instances_started(
    cloud: Cloud, key: str
) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(minutes=5)
    await cloud.settle()
    cloud.driver.stop(name(cloud))
    cloud.driver.reachable = True
    cloud.clock.move(minutes=1)

    await cloud.settle()

    assert cloud.driver.there[name(cloud)].running
    assert (await cloud.plane.store.read(row_of, key)).unseen_since is None


async def test_a_machine_that_comes_back_without_its_disk_loses_its_instances_at_once(
    cloud: Cloud, key: str
) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(minutes=5)
    await cloud.settle()
    cloud.driver.vanish(name(cloud))
    cloud.driver.reachable = True
    cloud.clock.move(minutes=1)

    await cloud.settle()

    assert await ended(cloud, key) == (LAST_WELL, "lost")


@pytest.mark.parametrize(
    "error", [Unreachable("no answer"), DriverError("something else")], ids=["unreachable", "other"]
)
async def test_a_look_that_fails_proves_nothing(cloud: Cloud, key: str, error: DriverError) -> None:
    cloud.driver.vanish(name(cloud))
    cloud.driver.faults = [Fault("instance", error, times=1)]
    await cloud.settle()
    assert (await cloud.show(key))["status"] == "active"

    cloud.driver.come_back(next(iter(cloud.driver.vanished)))
    cloud.clock.move(seconds=1)
    await cloud.settle()

    assert (await cloud.show(key))["status"] == "active"
    assert (await cloud.plane.store.read(row_of, key)).unseen_since is None


async def test_a_cluster_that_is_another_one_is_not_touched(cloud: Cloud, key: str) -> None:
    cloud.driver.name = "another-cluster"
    cloud.driver.vanish(name(cloud))
    await cloud.call("DELETE", f"/api/instances/{key}")
    other = (await cloud.rent("two"))["key"]
    cloud.driver.calls.clear()

    for _ in range(4):
        await cloud.settle()
        cloud.clock.move(seconds=20)

    assert set(cloud.driver.calls) == {"identity"}
    assert (await cloud.show(other))["error_occurred"]
    assert not (await cloud.plane.store.read(gpu, 1)).free


async def test_deleted_out_of_sight_it_is_charged_to_when_last_seen_well(cloud: Cloud, key: str) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(minutes=1)
    await cloud.settle()
    cloud.clock.move(hours=3)

    await cloud.call("DELETE", f"/api/instances/{key}")

    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"], shown["duration"]) == ("complete", False, 3)


async def test_seen_for_the_last_time_before_it_was_active_nothing_is_charged(cloud: Cloud) -> None:
    cloud.clock.move(minutes=1)
    made = await cloud.rent()
    await cloud.work()
    cloud.driver.vanish(name(cloud))

    await cloud.settle()

    row = await cloud.plane.store.read(row_of, made["key"])
    assert row.ended_at == row.active_at
    assert (await cloud.show(made["key"]))["estimated_charge"] == 0


async def test_many_out_of_sight_at_once_are_all_missed_and_all_recover(cloud: Cloud) -> None:
    keys = [(await cloud.rent(each))["key"] for each in ("a", "b")]
    await cloud.settle()
    cloud.driver.reachable = False
    cloud.clock.move(seconds=31)
    await cloud.settle()
    assert [(await cloud.plane.store.read(row_of, one)).unseen_since for one in keys] == [NOON, NOON]

    cloud.driver.reachable = True
    await cloud.settle()

    assert [(await cloud.plane.store.read(row_of, one)).free_seconds for one in keys] == [31, 31]
