"""A GPU that keeps failing, a try that cannot come, and what stays as it was meanwhile."""

import asyncio

import pytest

from cloud import Cloud
from vectordash.server.drivers.base import StartFailed, Unreachable
from vectordash.server.drivers.fake import Fault
from vectordash.server.machines import listing

pytestmark = pytest.mark.asyncio


async def test_whoever_waits_is_not_answered_by_a_try_that_failed(cloud: Cloud) -> None:
    """Only by what ends the waiting: here the second GPU, on which it comes up."""
    cloud.driver.faults = [Fault("ensure", StartFailed("broken"), gpu="GPU-m1-0")]
    key = (await cloud.rent())["key"]
    services = cloud.plane.services
    caller = await services.accounts.recognise(cloud.token)
    waiting = asyncio.create_task(services.instances.wait(caller, key, 30))
    while not services.instances.waiters._events:
        await asyncio.sleep(0)

    services.instances.waiters.tell(key)
    await services.store.read(lambda _: None)
    assert not waiting.done()
    await cloud.settle()

    assert (await waiting).status == "active"


async def test_a_renamed_instance_keeps_its_hostname_when_it_is_started_again(cloud: Cloud) -> None:
    key = (await cloud.rent("before"))["key"]
    await cloud.settle()
    (name,) = cloud.driver.there
    await cloud.call("PUT", f"/api/instances/{key}", {"name": "after"})
    cloud.driver.stop(name)

    await cloud.settle()

    assert cloud.driver.there[name].running
    assert cloud.driver.there[name].spec.hostname == "before"


async def test_a_gpu_that_fails_three_times_in_a_row_waits_for_the_operator(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("ensure", StartFailed("broken"), gpu="GPU-m1-2", times=99)]
    for _ in range(3):
        await cloud.rent(gpu="Titan V")
        await cloud.settle()

    refused = await cloud.call("POST", "/api/instances", {"name": "four", "gpu": "Titan V"})
    assert refused.status == 504
    await cloud.plane.store.write(listing.clear, cloud.clock(), [3])
    cloud.driver.faults.clear()
    await cloud.rent(gpu="Titan V")
    await cloud.settle()
    assert [one.spec.gpus for one in cloud.driver.there.values()] == [("GPU-m1-2",)]


async def test_an_instance_whose_second_try_cannot_come_is_given_up(cloud: Cloud) -> None:
    """The same GPU was to be tried once more, but its machine does not answer any more."""
    cloud.driver.faults = [
        Fault("ensure", StartFailed("busy", transient=True), after=True),
        Fault("remove", Unreachable("gone")),
    ]
    key = (await cloud.rent(gpu="Titan V"))["key"]
    await cloud.work()
    cloud.driver.reachable = False
    assert (await cloud.show(key))["status"] == "pending"

    cloud.clock.move(minutes=5)
    await cloud.look()
    await cloud.work()

    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"], shown["estimated_charge"]) == ("complete", True, 0)
    cloud.driver.reachable = True
    cloud.clock.move(minutes=5)
    await cloud.settle()
    assert cloud.driver.there == {}
