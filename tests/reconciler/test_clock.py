"""A clock that is another one after a restart: an hour ahead, or an hour behind what was written before."""

from datetime import timedelta

import pytest

from cloud import Cloud
from sights import demand_order, row_of
from vectordash.server.drivers.fake import Fault
from vectordash.server.instances import leases

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)


async def restart(cloud: Cloud, by: timedelta) -> None:
    """Let the process that is there end, and the next one begin with a clock that is off by so much."""
    cloud.clock.now += by
    plane = cloud.plane
    await plane.presence.leave()
    plane.presence.id = f"after {cloud.clock.now}"
    plane.presence.enter()
    await plane.store.write(leases.look_at_all, cloud.clock())
    cloud.cluster.asked = cloud.cluster.trusted = False
    cloud._watch = cloud.watch_of(plane.presence)


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["ahead", "behind"])
async def test_what_is_pending_becomes_active(cloud: Cloud, by: timedelta) -> None:
    """It was put off by a step that came to nothing, until a time that now lies far off."""
    cloud.driver.faults = [Fault("ensure", RuntimeError("once"))]
    key = (await cloud.rent())["key"]
    await cloud.work()
    assert (await cloud.show(key))["status"] == "pending"

    await restart(cloud, by)
    await cloud.settle()

    assert (await cloud.show(key))["status"] == "active"
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_start_that_hangs_is_given_up_after_its_time_and_not_an_hour_later(cloud: Cloud) -> None:
    """Its deadline was written by a clock that was ahead."""
    cloud.driver.faults = [Fault("ensure", RuntimeError("always"), times=1000, gpu="GPU-m1-0")]
    key = (await cloud.rent())["key"]
    await cloud.work()

    await restart(cloud, -HOUR)
    await cloud.work()
    cloud.clock.move(seconds=cloud.driver.start_deadline + 1)
    for _ in range(8):
        await cloud.settle()
        cloud.clock.move(seconds=1)

    shown = await cloud.show(key)
    assert (shown["status"], shown["physical_gpus"][0]["id"]) == ("active", 2)


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["ahead", "behind"])
async def test_what_is_out_of_sight_gets_a_whole_grace_and_no_more(cloud: Cloud, by: timedelta) -> None:
    key = (await cloud.rent())["key"]
    await cloud.settle()
    cloud.driver.reachable = False
    cloud.clock.move(seconds=cloud.plane.settings.machine_timeout + 1)
    await cloud.look()
    assert (await cloud.plane.store.read(row_of, key)).unseen_since is not None

    await restart(cloud, by)
    await cloud.look()

    row = await cloud.plane.store.read(row_of, key)
    grace = timedelta(seconds=cloud.plane.settings.grace)
    assert cloud.clock() < row.lost_at <= cloud.clock() + grace
    cloud.clock.now = row.lost_at - timedelta(seconds=1)
    await cloud.settle()
    assert (await cloud.show(key))["status"] == "active"
    cloud.clock.move(seconds=2)
    await cloud.settle()
    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"]) == ("complete", True)


async def test_a_clock_that_is_behind_charges_nothing_less_than_nothing(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    await cloud.settle()

    await restart(cloud, -HOUR)
    await cloud.settle()
    shown = await cloud.show(key)
    assert (shown["status"], shown["duration"]) == ("active", 1)
    await cloud.call("DELETE", f"/api/instances/{key}")
    await cloud.settle()

    assert (await cloud.show(key))["duration"] in {0, 1}
    demand_order(cloud.plane.store, cloud.driver)
