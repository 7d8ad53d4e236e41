"""The loops themselves, as the server runs them: woken by what happens, and not ended by any error."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cloud import Cloud
from sights import attempts_of, demand_order, reach
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Unreachable
from vectordash.server.drivers.fake import FakeDriver, Fault, simple_machine
from vectordash.server.instances import leases

pytestmark = pytest.mark.asyncio

MANY = 30
NewCloud = Callable[..., Awaitable[Cloud]]


@asynccontextmanager
async def running(cloud: Cloud) -> AsyncIterator[None]:
    """Let the loops run meanwhile."""
    loops = asyncio.create_task(cloud.plane.reconciler.run())
    heart = asyncio.create_task(cloud.plane.presence.run())
    try:
        async with asyncio.timeout(20):
            yield
        assert not loops.done(), "no loop has ended"
    finally:
        loops.cancel()
        heart.cancel()
        await asyncio.gather(loops, heart, return_exceptions=True)


async def begin_anew(cloud: Cloud) -> None:
    """Let a process end, with the leases that it had just taken, and another one begin."""
    presence = cloud.plane.presence
    await presence.leave()
    presence.id = "another"
    await asyncio.to_thread(presence.enter)


async def large(new_cloud: NewCloud) -> Cloud:
    """Make a cloud of four machines with eight cards each."""
    cloud = await new_cloud(
        *(simple_machine(f"m{number}", *["NVIDIA GeForce GTX 1080 Ti"] * 8) for number in range(4))
    )
    await cloud.stock_keys(MANY)
    return cloud


async def rent_all(cloud: Cloud) -> list[str]:
    made = await asyncio.gather(*(cloud.rent(f"n{number}") for number in range(MANY)))
    return [one["key"] for one in made]


async def wait_for(cloud: Cloud, keys: list[str]) -> set[str]:
    """Wait as renters do; gives the statuses."""
    answers = await asyncio.gather(*(cloud.call("GET", f"/api/instances/{key}?wait=20") for key in keys))
    return {answer.json["instance"]["status"] for answer in answers}


async def released(cloud: Cloud, key: str) -> None:
    """Wait until nothing is held for an instance; the reconciler tells after each work on it."""
    with cloud.plane.services.instances.waiters.waiting(key) as moved:
        while any(one.released_at is None for one in await cloud.plane.store.read(attempts_of, key)):
            await moved(0.5)


async def delete_all(cloud: Cloud, keys: list[str]) -> None:
    await asyncio.gather(*(cloud.call("DELETE", f"/api/instances/{key}") for key in keys))
    await asyncio.gather(*(released(cloud, key) for key in keys))


async def test_many_rented_at_once_all_become_active_and_all_are_released(new_cloud: NewCloud) -> None:
    cloud = await large(new_cloud)

    async with running(cloud):
        keys = await rent_all(cloud)
        assert await wait_for(cloud, keys) == {"active"}
        assert len({one.spec.gpus for one in cloud.driver.there.values()}) == MANY
        demand_order(cloud.plane.store, cloud.driver)
        await delete_all(cloud, keys)

    assert cloud.driver.there == {}
    demand_order(cloud.plane.store, cloud.driver)


async def test_stopped_in_the_middle_and_started_again_it_goes_on(new_cloud: NewCloud) -> None:
    cloud = await large(new_cloud)
    cloud.driver.faults = [Fault("login", delay=float("inf"), gpu=f"GPU-m3-{n}", times=1) for n in range(8)]
    async with running(cloud):
        keys = await rent_all(cloud)
        await reach(cloud.driver, "login", MANY // 2)
    cloud.driver.faults.clear()
    await begin_anew(cloud)

    async with running(cloud):
        assert await wait_for(cloud, keys) == {"active"}
        demand_order(cloud.plane.store, cloud.driver)
        await delete_all(cloud, keys)

    demand_order(cloud.plane.store, cloud.driver)


async def test_deleted_while_they_start_all_are_released(new_cloud: NewCloud) -> None:
    cloud = await large(new_cloud)

    async with running(cloud):
        keys = await rent_all(cloud)
        await delete_all(cloud, keys)

    assert cloud.driver.there == {}
    demand_order(cloud.plane.store, cloud.driver)


async def test_news_of_a_driver_are_followed_at_once(cloud: Cloud) -> None:
    await cloud.stock_keys(1)
    async with running(cloud):
        key = (await cloud.rent())["key"]
        await wait_for(cloud, [key])
        (name,) = cloud.driver.there

        with cloud.plane.services.instances.waiters.waiting(key) as moved:
            cloud.driver.stop(name)
            await moved(4)

        assert cloud.driver.there[name].running


class Deaf(FakeDriver):
    """A cluster whose news cannot be heard."""

    heard = 0

    async def changed(self) -> None:
        """Fail."""
        self.heard += 1
        raise Unreachable("its news cannot be heard")


async def test_a_driver_whose_news_fail_ends_no_loop_and_is_not_stormed(cloud: Cloud) -> None:
    await cloud.stock_keys(1)
    deaf = Deaf(cloud.driver.inventory)
    cloud.cluster.driver = deaf

    async with running(cloud):
        key = (await cloud.rent())["key"]
        assert await wait_for(cloud, [key]) == {"active"}

    assert deaf.heard <= 2


class Forgetful:
    """A store that fails in ways that nobody foresaw, at its first questions."""

    def __init__(self, store: Store, failures: int) -> None:
        self.store, self.failures, self.waiting_for = store, failures, asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        """Give what the store has."""
        return getattr(self.store, name)

    async def read(self, question: Callable[..., Any], *args: Any) -> Any:
        """See `Store`."""
        if question is leases.due and self.failures:
            self.failures -= 1
            raise RuntimeError("nobody foresaw this")
        return await self.store.read(question, *args)


async def test_an_unforeseen_error_ends_no_loop(cloud: Cloud) -> None:
    await cloud.stock_keys(1)
    reconciler = cloud.plane.reconciler
    reconciler.store = Forgetful(reconciler.store, 2)  # type: ignore[assignment]

    async with running(cloud):
        key = (await cloud.rent())["key"]
        for _ in range(3):
            reconciler.wake()
            await asyncio.sleep(0)
        assert await wait_for(cloud, [key]) == {"active"}


async def test_what_it_logs_of_an_error_names_the_deed_and_no_secret(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    reconciler = cloud.plane.reconciler
    reconciler.store = Forgetful(reconciler.store, 1)  # type: ignore[assignment]
    async with running(cloud):
        while not caplog.records:
            await asyncio.sleep(0)

    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == ["Reconciler._begin_those_due failed"]
