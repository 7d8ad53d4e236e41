"""From POST to a login, and what becomes of a start that fails."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from cloud import NOON, Cloud, open_cloud
from sights import attempts_of, demand_order, gpu, narrow_ports
from vectordash.server.drivers.base import StartFailed, Unreachable
from vectordash.server.drivers.fake import Fault, simple_machine

pytestmark = pytest.mark.asyncio

BROKEN = StartFailed("the GPU is broken")
BUSY = StartFailed("the GPU is busy", transient=True)
ALWAYS = 1_000_000


@pytest_asyncio.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    """A cloud with four 1080 ti, and keys in stock."""
    made = await open_cloud(
        tmp_path / "data", simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 4, vram=11)
    )
    await made.stock_keys(8)
    yield made
    await made.plane.close()


def uuid(gpu_id: int) -> str:
    return f"GPU-m1-{gpu_id - 1}"


async def gpus_tried(cloud: Cloud, key: str) -> list[int]:
    return [one.gpu_id for one in await cloud.plane.store.read(attempts_of, key)]


async def withhold(cloud: Cloud, *gpu_ids: int) -> None:
    for gpu_id in gpu_ids:
        await cloud.change_listing(gpu_id, listed=False)


async def test_a_start_makes_exactly_what_was_rented(cloud: Cloud) -> None:
    made = await cloud.rent("brave_otter", image="fastai")

    await cloud.settle()

    (one,) = cloud.driver.there.values()
    assert (one.spec.hostname, one.spec.image, one.spec.gpus) == ("brave-otter", "fastai", (uuid(1),))
    assert (one.spec.cores, one.spec.ram, one.spec.storage) == (4, 15, 225)
    assert one.spec.port == made["port"]
    assert (await cloud.show("brave_otter"))["status"] == "active"
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_start_takes_one_look_one_start_and_one_login(cloud: Cloud) -> None:
    await cloud.rent()
    cloud.driver.calls.clear()

    await cloud.work()

    assert cloud.driver.calls == {"instance": 1, "ensure": 1, "login": 1}


async def test_a_slow_start_is_waited_for(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("ensure", delay=0.02), Fault("login", delay=0.02)]
    await cloud.rent()

    await cloud.settle()

    assert (await cloud.show("one"))["status"] == "active"


async def test_a_failed_start_goes_on_on_another_gpu(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("ensure", BROKEN, gpu=uuid(1), times=ALWAYS)]
    made = await cloud.rent()

    await cloud.settle()

    shown = await cloud.show("one")
    assert (shown["status"], shown["physical_gpus"][0]["id"]) == ("active", 2)
    assert shown["port"] != made["port"]
    assert await cloud.events("one") == ["rented", "start_failed", "placed", "active", "released"]
    demand_order(cloud.plane.store, cloud.driver)


@pytest.mark.parametrize(
    ("promised", "own", "paid"),
    [
        pytest.param("0.64", "0.50", 0.5, id="the other is cheaper"),
        pytest.param("0.64", "0.90", 0.64, id="the other is dearer"),
        pytest.param("0.64", "0", 0, id="the other is free of charge"),
    ],
)
async def test_another_gpu_costs_the_lower_of_the_promised_and_its_own_price(
    cloud: Cloud, promised: str, own: str, paid: float
) -> None:
    await cloud.list_gpus(gpu_1=promised, gpu_2=own)
    await withhold(cloud, 2, 3, 4)
    cloud.driver.faults = [Fault("ensure", BROKEN, gpu=uuid(1), times=ALWAYS)]
    await cloud.rent()
    await cloud.change_listing(2, listed=True)

    await cloud.settle()

    shown = await cloud.show("one")
    assert (shown["status"], shown["hourly_price"]) == ("active", paid)


@pytest.mark.parametrize(
    ("hours", "status"), [(-1, "complete"), (0, "active"), (1, "active")], ids=["less", "as long", "longer"]
)
async def test_another_gpu_keeps_the_promised_availability(cloud: Cloud, hours: int, status: str) -> None:
    promise = NOON + timedelta(days=7)
    await withhold(cloud, 2, 3, 4)
    await cloud.change_listing(1, available_until=promise)
    cloud.driver.faults = [Fault("ensure", BROKEN, gpu=uuid(1), times=ALWAYS)]
    made = await cloud.rent()
    await cloud.change_listing(2, listed=True, available_until=promise + timedelta(hours=hours))

    await cloud.settle()

    assert (await cloud.show(made["key"]))["status"] == status


async def test_after_three_attempts_it_ends_and_costs_nothing(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("ensure", BROKEN, times=ALWAYS)]
    made = await cloud.rent()

    await cloud.settle()

    shown = await cloud.show(made["key"])
    assert (shown["status"], shown["error_occurred"]) == ("complete", True)
    assert (shown["estimated_charge"], shown["duration"], shown["pem"]) == (0, 0, "")
    assert await gpus_tried(cloud, made["key"]) == [1, 2, 3]
    demand_order(cloud.plane.store, cloud.driver)


@pytest.mark.parametrize(
    ("error", "tried"),
    [pytest.param(BUSY, [1, 1], id="may pass"), pytest.param(BROKEN, [1], id="will not pass")],
)
async def test_with_no_other_free_the_same_gpu_is_tried_once_more_if_the_fault_may_pass(
    cloud: Cloud, error: StartFailed, tried: list[int]
) -> None:
    await withhold(cloud, 2, 3, 4)
    cloud.driver.faults = [Fault("ensure", error, times=ALWAYS)]
    made = await cloud.rent()

    await cloud.settle()

    assert await gpus_tried(cloud, made["key"]) == tried
    assert (await cloud.show(made["key"]))["error_occurred"]
    demand_order(cloud.plane.store, cloud.driver)


async def test_the_second_try_on_the_same_gpu_may_succeed(cloud: Cloud) -> None:
    await withhold(cloud, 2, 3, 4)
    cloud.driver.faults = [Fault("login", BUSY)]
    made = await cloud.rent()

    await cloud.settle()

    assert (await cloud.show("one"))["status"] == "active"
    assert await gpus_tried(cloud, made["key"]) == [1, 1]
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_gpu_that_failed_is_suspect_until_it_is_seen_free_and_well(cloud: Cloud) -> None:
    await withhold(cloud, 2, 3, 4)
    cloud.driver.faults = [Fault("ensure", BROKEN, after=True), Fault("remove", Unreachable("no answer"))]
    await cloud.rent()
    store = cloud.plane.store

    await cloud.work()

    failed = await store.read(gpu, 1)
    assert (failed.free, failed.suspect) == (False, True)
    assert "did not start on it: the GPU is broken" in failed.suspect_why
    await cloud.look()
    assert (await store.read(gpu, 1)).suspect, "it is still held"
    cloud.clock.move(seconds=60)
    await cloud.work()
    assert (await store.read(gpu, 1)).free
    assert (await store.read(gpu, 1)).suspect, "nobody has looked yet"
    await cloud.look()
    assert not (await store.read(gpu, 1)).suspect


async def test_a_busy_port_is_exchanged_on_the_same_gpu_in_the_same_attempt(cloud: Cloud) -> None:
    cloud.driver.busy_ports = {20000, 20001, 20002}
    made = await cloud.rent()
    assert made["port"] == 20000

    await cloud.settle()

    shown = await cloud.show("one")
    assert (shown["status"], shown["port"], shown["physical_gpus"][0]["id"]) == ("active", 20003, 1)
    assert await gpus_tried(cloud, made["key"]) == [1]
    assert await cloud.events("one") == ["rented", *["port_moved"] * 3, "active"]
    demand_order(cloud.plane.store, cloud.driver)


async def test_with_every_port_busy_it_waits_between_tries_and_then_fails(cloud: Cloud) -> None:
    cloud.driver.busy_ports = set(range(20000, 21000))
    made = await cloud.rent()
    await withhold(cloud, 2, 3, 4)

    await cloud.settle()

    assert (await cloud.show(made["key"]))["status"] == "pending"
    assert cloud.driver.calls["ensure"] < 20, "it spins"
    for _ in range(8):
        cloud.clock.move(seconds=30)
        await cloud.settle()
    assert (await cloud.show(made["key"]))["error_occurred"]
    demand_order(cloud.plane.store, cloud.driver)


@pytest.mark.parametrize("call", ["ensure", "login"])
async def test_a_start_that_hangs_is_given_up_at_its_deadline(cloud: Cloud, call: str) -> None:
    cloud.driver.start_deadline = 0.05
    cloud.driver.faults = [Fault(call, delay=float("inf"), gpu=uuid(1), times=ALWAYS)]
    made = await cloud.rent()

    await cloud.settle()

    assert (await cloud.show("one"))["status"] == "active"
    assert await gpus_tried(cloud, made["key"]) == [1, 2]
    demand_order(cloud.plane.store, cloud.driver)


async def test_what_was_made_though_an_error_was_reported_is_removed(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("ensure", BROKEN, gpu=uuid(1), after=True)]
    await cloud.rent()

    await cloud.settle()

    assert (await cloud.show("one"))["physical_gpus"][0]["id"] == 2
    assert cloud.driver.calls["remove"] == 1
    demand_order(cloud.plane.store, cloud.driver)


async def test_a_lost_answer_of_a_start_is_no_failure(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("ensure", Unreachable("the line broke"), after=True)]
    made = await cloud.rent()

    await cloud.settle()
    assert (await cloud.show("one"))["status"] == "pending"
    cloud.clock.move(seconds=1)
    await cloud.settle()

    assert (await cloud.show("one"))["status"] == "active"
    assert await gpus_tried(cloud, made["key"]) == [1]


async def test_a_cluster_out_of_reach_is_waited_for_until_the_deadline(cloud: Cloud) -> None:
    made = await cloud.rent()
    cloud.driver.reachable = False

    await cloud.settle()
    cloud.clock.move(seconds=14)
    await cloud.settle()
    assert (await cloud.show("one"))["status"] == "pending"
    assert await gpus_tried(cloud, made["key"]) == [1]

    cloud.clock.move(seconds=2)
    await cloud.settle()
    assert await gpus_tried(cloud, made["key"]) == [1, 2], "over to another"
    cloud.driver.reachable = True
    cloud.clock.move(seconds=1)
    await cloud.settle()
    assert (await cloud.show("one"))["status"] == "active"
    cloud.clock.move(seconds=60)
    await cloud.settle()
    demand_order(cloud.plane.store, cloud.driver)


async def test_out_of_reach_with_no_other_gpu_free_it_ends_at_its_deadline(cloud: Cloud) -> None:
    """To try the same GPU once more would mean to wait for its machine without end."""
    await withhold(cloud, 2, 3, 4)
    key = (await cloud.rent())["key"]
    cloud.driver.reachable = False

    await cloud.settle()
    cloud.clock.move(seconds=15)
    await cloud.settle()

    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"], shown["estimated_charge"]) == ("complete", True, 0)


async def test_a_cluster_that_comes_back_in_time_is_used(cloud: Cloud) -> None:
    made = await cloud.rent()
    cloud.driver.reachable = False
    await cloud.settle()

    cloud.driver.reachable = True
    cloud.clock.move(seconds=10)
    await cloud.settle()

    assert (await cloud.show("one"))["status"] == "active"
    assert await gpus_tried(cloud, made["key"]) == [1]


async def test_an_exhausted_range_of_ports_leaves_no_gpu_held(cloud: Cloud) -> None:
    """The start fails, and for the other GPU there is no port left."""
    cloud.driver.faults = [Fault("ensure", BROKEN, gpu=uuid(1))]
    made = await cloud.rent()
    await cloud.plane.store.write(narrow_ports, made["port"])

    await cloud.settle()

    assert (await cloud.show(made["key"]))["error_occurred"]
    demand_order(cloud.plane.store, cloud.driver)
