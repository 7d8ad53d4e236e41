"""A pass over a cluster: machines and GPUs that come and go, orphans, strays, and the first pass of all."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from cloud import NOON, Cloud, HandClock
from databases import Database
from mortal import Process, World, make_world, new_cluster, rent
from sights import demand_order, gpu, orphan_names, row_of
from vectordash.server.drivers.base import DriverError, SeenGpu, SeenInstance, Spec
from vectordash.server.drivers.fake import FakeDriver, FakeInstance, Fault
from vectordash.server.machines import store as machines

pytestmark = pytest.mark.asyncio


async def offered(cloud: Cloud) -> list[str]:
    """List the types on offer."""
    return [one["type"] for one in (await cloud.call("GET", "/api/gpus")).json["gpus"]]


def change_machine(cloud: Cloud, **changes: Any) -> None:
    """Let the one machine of the cluster be seen differently."""
    cloud.driver.inventory = [dataclasses.replace(cloud.driver.inventory[0], **changes)]


def strange(name: str, uuid: str, port: int) -> FakeInstance:
    """Make an instance that nobody has asked for."""
    return FakeInstance(
        Spec(name, "x", "fastai", "m1", (uuid,), 1, 1, 1, "127.0.0.1", port, authorized_keys=(), host_key="")
    )


# Machines and GPUs


async def test_a_machine_that_goes_offline_is_not_offered_until_it_is_back(cloud: Cloud) -> None:
    change_machine(cloud, online=False)
    await cloud.look()
    assert await offered(cloud) == []

    change_machine(cloud, online=True)
    await cloud.look()

    assert await offered(cloud) == ["1080 ti", "Titan V"]


async def test_a_machine_that_left_its_cluster_is_not_offered(cloud: Cloud) -> None:
    was, cloud.driver.inventory = cloud.driver.inventory, []
    await cloud.look()
    assert await offered(cloud) == []

    cloud.driver.inventory = was
    await cloud.look()

    assert await offered(cloud) == ["1080 ti", "Titan V"]


async def test_a_cluster_that_does_not_answer_for_long_is_not_offered_until_it_does(cloud: Cloud) -> None:
    cloud.driver.reachable = False
    cloud.clock.move(seconds=29)
    await cloud.look()
    assert await offered(cloud) == ["1080 ti", "Titan V"]
    cloud.clock.move(seconds=1)
    await cloud.look()
    assert await offered(cloud) == []

    cloud.driver.reachable = True
    await cloud.look()

    assert await offered(cloud) == ["1080 ti", "Titan V"]


async def test_a_new_gpu_appears_and_is_not_offered_before_its_operator_says_so(cloud: Cloud) -> None:
    new = SeenGpu("GPU-new", "Tesla V100-SXM2-16GB", 16, simulated=True)
    change_machine(cloud, gpus=(*cloud.driver.inventory[0].gpus, new))

    await cloud.look()

    assert "tesla v100" not in " ".join(await offered(cloud)).lower()
    found = (await cloud.plane.store.read(machines.all_gpus))[-1]
    assert (found.model, found.listed, found.present) == ("Tesla V100-SXM2-16GB", False, True)
    await cloud.list_gpus()
    assert len(await offered(cloud)) == 3


async def test_a_gpu_that_disappears_is_not_offered_and_comes_back_as_the_same(cloud: Cloud) -> None:
    was = cloud.driver.inventory[0].gpus
    change_machine(cloud, gpus=was[:2])
    await cloud.look()
    assert await offered(cloud) == ["1080 ti"]

    change_machine(cloud, gpus=was)
    await cloud.look()

    assert await offered(cloud) == ["1080 ti", "Titan V"]
    assert [one.id for one in await cloud.plane.store.read(machines.all_gpus)] == [1, 2, 3]


async def test_a_gpu_that_moves_to_another_machine_stays_the_same(cloud: Cloud) -> None:
    (one,) = cloud.driver.inventory
    other = dataclasses.replace(one, name="m2", gpus=one.gpus[2:])
    cloud.driver.inventory = [dataclasses.replace(one, gpus=one.gpus[:2]), other]

    await cloud.look()

    rows = await cloud.plane.store.read(machines.all_gpus)
    assert [(row.id, row.machine, row.present) for row in rows] == [
        (1, "m1", True),
        (2, "m1", True),
        (3, "m2", True),
    ]


# Orphans and strays


async def test_an_unknown_instance_is_reported_and_kept_and_what_it_holds_is_withheld(cloud: Cloud) -> None:
    cloud.driver.there["vd-strange"] = strange("vd-strange", "GPU-m1-2", 20000)

    await cloud.settle()
    await cloud.settle()

    assert await cloud.plane.store.read(orphan_names) == ["vd-strange"]
    assert "vd-strange" in cloud.driver.there
    assert cloud.driver.calls["remove"] == 0
    assert await offered(cloud) == ["1080 ti"]
    assert "vd-strange, which this store does not know" in (await cloud.plane.store.read(gpu, 3)).suspect_why
    assert (await cloud.rent())["port"] == 20001, "20000 is the orphan's"


async def test_what_an_orphan_held_is_offered_again_once_it_is_gone(cloud: Cloud) -> None:
    cloud.driver.there["vd-strange"] = strange("vd-strange", "GPU-m1-2", 20000)
    await cloud.settle()

    del cloud.driver.there["vd-strange"]
    await cloud.settle()

    assert await cloud.plane.store.read(orphan_names) == []
    assert await offered(cloud) == ["1080 ti", "Titan V"]


async def test_a_gpu_that_an_orphan_holds_is_not_offered_when_its_instance_lets_go(cloud: Cloud) -> None:
    key = (await cloud.rent(gpu="titan v"))["key"]
    await cloud.settle()
    cloud.driver.there["vd-strange"] = strange("vd-strange", "GPU-m1-2", 20500)
    await cloud.settle()

    await cloud.call("DELETE", f"/api/instances/{key}")
    await cloud.work()

    assert (await cloud.plane.store.read(gpu, 3)).free
    assert await offered(cloud) == ["1080 ti"]


async def test_what_was_released_and_runs_again_is_removed(cloud: Cloud) -> None:
    """A driver call that outlived its lease made it once more."""
    key = (await cloud.rent())["key"]
    await cloud.settle()
    was = dict(cloud.driver.there)
    await cloud.call("DELETE", f"/api/instances/{key}")
    await cloud.settle()

    cloud.driver.there.update(was)
    cloud.driver.faults = [Fault("remove", DriverError("busy"))]
    await cloud.look()
    assert set(cloud.driver.there) == set(was)
    await cloud.look()

    assert await cloud.plane.store.read(orphan_names) == []
    demand_order(cloud.plane.store, cloud.driver)


class Meanwhile(FakeDriver):
    """A cluster that lists its instances while something else happens: before it looks, or after."""

    before: Callable[[], Awaitable[object]]
    after: Callable[[], Awaitable[object]]

    async def instances(self) -> Sequence[SeenInstance]:
        """See `Driver`."""
        await self.before()
        listed = await super().instances()
        await self.after()
        return listed


async def nothing() -> None:
    """Happen."""


def listing(cloud: Cloud) -> Meanwhile:
    """Exchange the cluster's driver for such a one."""
    driver = Meanwhile(cloud.driver.inventory, there=cloud.driver.there)
    driver.before = driver.after = nothing
    cloud.driver = cloud.cluster.driver = driver
    return driver


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_instance_rented_and_made_during_a_pass_is_neither_missing_nor_an_orphan(
    cloud: Cloud, moment: str
) -> None:
    async def rent_and_make() -> None:
        await cloud.rent()
        await cloud.work()

    setattr(listing(cloud), moment, rent_and_make)

    await cloud.look()

    assert await cloud.plane.store.read(orphan_names) == []
    assert await cloud.events("one") == ["rented", "active"]
    demand_order(cloud.plane.store, cloud.driver)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_instance_deleted_and_removed_during_a_pass_is_neither_missing_nor_an_orphan(
    cloud: Cloud, moment: str
) -> None:
    key = (await cloud.rent())["key"]
    await cloud.settle()

    async def delete_and_remove() -> None:
        await cloud.call("DELETE", f"/api/instances/{key}")
        await cloud.work()

    setattr(listing(cloud), moment, delete_and_remove)

    await cloud.look()

    assert await cloud.plane.store.read(orphan_names) == []
    assert await cloud.events(key) == ["rented", "active", "deleted", "released"]
    demand_order(cloud.plane.store, cloud.driver)


# The first pass of a process


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_database: Database) -> Iterator[World]:
    """Make what all stories begin with."""
    made = asyncio.run(make_world(shared_database, tmp_path_factory.mktemp("world") / "made"))
    yield made
    made.store.close()


async def test_nothing_is_decided_before_a_cluster_was_asked(world: World) -> None:
    clock, cluster = HandClock(), new_cluster()
    process = Process(world.anew(), clock, cluster)
    key = await rent(process)
    clock.move(minutes=1)

    await process.work(key)

    row = process.store.ask(row_of, key)
    assert (row.ended_at, row.active_at, row.failures) == (None, None, 1)
    assert (cluster.calls["instance"], cluster.calls["ensure"]) == (0, 0)
    await process.settle()
    assert process.store.ask(row_of, key).active_at is not None
    process.close()


async def test_a_grace_that_ended_while_no_server_ran_is_given_anew(world: World) -> None:
    """The power is cut: first to the machines, then to the server; the server is the first to be back."""
    clock, cluster = HandClock(), new_cluster()
    process = Process(world.anew(), clock, cluster)
    key = await rent(process)
    await process.settle()
    cluster.reachable = False
    clock.move(minutes=5)
    await process.look()
    assert process.store.ask(row_of, key).lost_at == clock() + timedelta(minutes=10)
    process.close()
    clock.move(hours=8)

    process = await Process(world, clock, cluster).bury_the_dead()
    await process.work(key)
    await process.look()
    await process.work(key)
    row = process.store.ask(row_of, key)
    assert (row.ended_at, row.unseen_since) == (None, NOON)
    assert row.lost_at == clock() + timedelta(minutes=10)
    clock.move(minutes=5)
    cluster.stop(next(iter(cluster.there)))
    cluster.reachable = True
    await process.settle()

    row = process.store.ask(row_of, key)
    assert (row.ended_at, row.unseen_since, row.free_seconds) == (None, None, 8 * 3600 + 600)
    demand_order(process.store, cluster)
    process.close()


async def test_a_grace_that_still_runs_is_not_prolonged_by_a_restart(world: World) -> None:
    clock, cluster = HandClock(), new_cluster()
    process = Process(world.anew(), clock, cluster)
    key = await rent(process)
    await process.settle()
    cluster.reachable = False
    clock.move(minutes=5)
    await process.look()
    lost_at = process.store.ask(row_of, key).lost_at
    for _ in range(3):
        process.close()
        clock.move(minutes=3)
        process = await Process(world, clock, cluster).bury_the_dead()
        await process.look()
        await process.work(key)

    assert process.store.ask(row_of, key).lost_at == lost_at
    clock.now = lost_at
    await process.work(key)
    assert process.store.ask(row_of, key).end_reason == "lost"
    process.close()


async def test_the_time_that_the_server_was_down_is_charged_only_if_the_instance_survived(
    world: World,
) -> None:
    clock, cluster = HandClock(), new_cluster()
    process = Process(world.anew(), clock, cluster)
    key = await rent(process)
    await process.settle()
    process.close()
    clock.move(hours=8)
    cluster.vanish(next(iter(cluster.there)))

    process = Process(world, clock, cluster)
    await process.settle()

    assert process.store.ask(row_of, key).ended_at == NOON
    process.close()
