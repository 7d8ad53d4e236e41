"""Ends: by DELETE, at any moment, and by the account's limit; and when GPU, port and key are let go."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from cloud import NOON, Cloud
from sights import attempts_of, demand_order, gpu, reach, row_of
from vectordash.server.drivers.base import DriverError, Unreachable
from vectordash.server.drivers.fake import Call, Fault

pytestmark = pytest.mark.asyncio


async def active(cloud: Cloud, name: str = "one") -> str:
    """Rent, and let it become active; gives the key."""
    made = await cloud.rent(name)
    await cloud.settle()
    assert (await cloud.show(made["key"]))["status"] == "active"
    return str(made["key"])


async def delete(cloud: Cloud, key: str) -> None:
    assert (await cloud.call("DELETE", f"/api/instances/{key}")).status == 204


async def test_a_deleted_instance_leaves_nothing(cloud: Cloud) -> None:
    key = await active(cloud)

    await delete(cloud, key)
    await cloud.settle()

    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"], shown["pem"]) == ("complete", False, "")
    (attempt,) = await cloud.plane.store.read(attempts_of, key)
    assert attempt.released_at == NOON
    demand_order(cloud.plane.store, cloud.driver)


async def test_deleted_before_anybody_started_it_nothing_is_started(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]

    await delete(cloud, key)
    await cloud.settle()

    assert cloud.driver.calls["ensure"] == 0
    assert (await cloud.show(key))["estimated_charge"] == 0
    demand_order(cloud.plane.store, cloud.driver)


@pytest.mark.parametrize("call", ["ensure", "login"])
async def test_deleted_during_its_start_it_costs_nothing(cloud: Cloud, call: Call) -> None:
    cloud.driver.faults = [Fault(call, delay=0.05)]
    key = (await cloud.rent())["key"]
    work = asyncio.create_task(cloud.work())
    await reach(cloud.driver, call)

    await delete(cloud, key)
    await work
    await cloud.settle()

    shown = await cloud.show(key)
    assert (shown["status"], shown["estimated_charge"], shown["duration"]) == ("complete", 0, 0)
    assert not shown["error_occurred"]
    assert await cloud.events(key) == ["rented", "deleted", "released"]
    demand_order(cloud.plane.store, cloud.driver)


async def test_deleted_while_a_start_fails_no_other_gpu_is_taken(cloud: Cloud) -> None:
    cloud.driver.start_deadline = 0.05
    cloud.driver.faults = [Fault("ensure", delay=float("inf"))]
    key = (await cloud.rent())["key"]
    work = asyncio.create_task(cloud.work())
    await reach(cloud.driver, "ensure")

    await delete(cloud, key)
    await work
    await cloud.settle()

    assert [one.gpu_id for one in await cloud.plane.store.read(attempts_of, key)] == [1]
    assert not (await cloud.show(key))["error_occurred"]
    demand_order(cloud.plane.store, cloud.driver)


async def test_deleted_while_the_same_gpu_is_cleared_for_another_try_it_is_not_tried(cloud: Cloud) -> None:
    await cloud.change_listing(2, listed=False)
    cloud.driver.start_deadline = 0.05
    cloud.driver.faults = [Fault("login", delay=float("inf")), Fault("remove", delay=0.5)]
    key = (await cloud.rent())["key"]
    work = asyncio.create_task(cloud.work())
    await reach(cloud.driver, "remove")

    await delete(cloud, key)
    await work
    await cloud.settle()

    assert len(await cloud.plane.store.read(attempts_of, key)) == 1
    demand_order(cloud.plane.store, cloud.driver)


async def test_deleted_and_activated_at_once_it_is_one_or_the_other(cloud: Cloud) -> None:
    """Never active without a charge, never charged without having been active."""
    for _ in range(8):
        key = (await cloud.rent())["key"]
        await asyncio.gather(cloud.work(), delete(cloud, key))
        await cloud.settle()

        row = await cloud.plane.store.read(row_of, key)
        shown = await cloud.show(key)
        assert shown["estimated_charge"] == (0 if row.active_at is None else shown["hourly_price"])
        assert shown["status"] == "complete"
        demand_order(cloud.plane.store, cloud.driver)
        await cloud.stock_keys(1)


async def test_a_gpu_is_held_until_its_instance_is_proven_gone(cloud: Cloud) -> None:
    key = await active(cloud)
    cloud.driver.faults = [Fault("remove", DriverError("its disk is busy"), times=2)]
    await delete(cloud, key)

    for pause in (0, 0.25, 0.5):
        assert not (await cloud.plane.store.read(gpu, 1)).free
        assert (await cloud.plane.store.read(row_of, key)).pem is not None
        cloud.clock.move(seconds=pause)
        await cloud.settle()

    assert (await cloud.plane.store.read(gpu, 1)).free
    assert (await cloud.plane.store.read(row_of, key)).pem is None
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_gpu_out_of_reach_is_held_and_its_instance_removed_once_it_is_back(cloud: Cloud) -> None:
    key = await active(cloud)
    cloud.driver.reachable = False
    await delete(cloud, key)

    for _ in range(5):
        await cloud.settle()
        cloud.clock.move(minutes=10)
    assert not (await cloud.plane.store.read(gpu, 1)).free
    assert (await cloud.show(key))["status"] == "complete"

    cloud.driver.reachable = True
    await cloud.settle()
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_lost_answer_of_a_removal_is_no_failure(cloud: Cloud) -> None:
    key = await active(cloud)
    cloud.driver.faults = [Fault("remove", Unreachable("the line broke"), after=True)]
    await delete(cloud, key)

    await cloud.settle()
    cloud.clock.move(seconds=1)
    await cloud.settle()

    assert cloud.driver.calls["remove"] == 1
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_removal_that_is_reported_but_did_not_happen_is_not_believed(cloud: Cloud) -> None:
    key = await active(cloud)
    cloud.driver.stubborn = set(cloud.driver.there)
    await delete(cloud, key)

    await cloud.settle()

    assert not (await cloud.plane.store.read(gpu, 1)).free
    assert cloud.driver.calls["remove"] <= 12, "it spins"
    cloud.driver.stubborn.clear()
    cloud.clock.move(seconds=1)
    await cloud.settle()
    demand_order(cloud.plane.store, cloud.driver)


async def test_all_attempts_of_an_ended_instance_are_released_and_its_key_erased(cloud: Cloud) -> None:
    cloud.driver.faults = [
        Fault("ensure", Unreachable("no answer"), gpu="GPU-m1-0", after=True),
        Fault("remove", Unreachable("no answer"), gpu="GPU-m1-0", times=3),
    ]
    key = (await cloud.rent())["key"]
    await cloud.settle()
    cloud.clock.move(seconds=15)
    await cloud.settle()
    held = [one for one in await cloud.plane.store.read(attempts_of, key) if one.released_at is None]
    assert len(held) == 2

    await delete(cloud, key)
    for _ in range(6):
        cloud.clock.move(seconds=30)
        await cloud.settle()

    demand_order(cloud.plane.store, cloud.driver)


@pytest.mark.parametrize("late", [0, 7], ids=["at once", "noticed late"])
async def test_the_limit_of_hours_ends_an_instance_at_exactly_its_limit(
    new_cloud: Callable[..., Awaitable[Cloud]], late: float
) -> None:
    cloud = await new_cloud(hours_an_instance=2)
    key = await active(cloud)
    reconciler = cloud.plane.reconciler

    cloud.clock.move(hours=2, seconds=-1)
    await reconciler._end_those_over_time()
    assert (await cloud.plane.store.read(row_of, key)).ended_at is None
    cloud.clock.move(seconds=1 + late)
    await reconciler._end_those_over_time()
    await cloud.settle()

    row = await cloud.plane.store.read(row_of, key)
    assert (row.ended_at, row.end_reason, row.error) == (NOON + timedelta(hours=2), "time_limit", False)
    shown = await cloud.show(key)
    assert (shown["duration"], shown["estimated_charge"]) == (2, 1.28)
    demand_order(cloud.plane.store, cloud.driver)
