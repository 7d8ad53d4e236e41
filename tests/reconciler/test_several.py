"""Several reconcilers on one cluster: one makes the passes, and writes over what others wrote meanwhile."""

from typing import Any

import pytest
from sqlalchemy import select

from cloud import Cloud, HandClock
from vectordash.server import app
from vectordash.server.db import presence
from vectordash.server.drivers.base import SeenInstance
from vectordash.server.drivers.fake import FakeDriver
from vectordash.server.instances import leases
from vectordash.server.machines import store as machines
from vectordash.server.machines.tables import gpus
from vectordash.server.machines.tables import machines as computers
from vectordash.server.reconciler.machine import Watch

pytestmark = pytest.mark.asyncio


def present(connection: Any) -> set[tuple[bool, bool]]:
    """Which cards are present, and which machines online?"""
    query = select(gpus.c.present, computers.c.online).join_from(
        gpus, computers, gpus.c.machine_id == computers.c.id
    )
    return {tuple(row) for row in connection.execute(query)}


def another(cloud: Cloud, name: str) -> Watch:
    """Make the watch of another process, which lives."""
    plane = cloud.plane
    process = presence.Presence(plane.store, HandClock(), "reconciler", id=name)
    plane.store.change(process._enter if plane.store.shared else enter_beside, name)
    return cloud.watch_of(process)


def enter_beside(connection: Any, name: str) -> None:
    """On SQLite whoever enters clears the others away: not here."""
    now = HandClock()()
    presence.enter(connection, presence.Process(name, "reconciler", "here", 1, now, now))


async def test_one_makes_the_passes_and_the_other_only_asks_who_it_is(cloud: Cloud) -> None:
    other = another(cloud, "other")
    await cloud.look()
    cloud.driver.calls.clear()

    await other.look()

    assert cloud.driver.calls == {"identity": 1}


async def test_when_it_has_died_the_other_takes_over_and_writes_all(cloud: Cloud) -> None:
    other = another(cloud, "other")
    await cloud.look()
    await other.look()
    store = cloud.plane.store
    await store.write(machines.offline, cloud.cluster.id)  # the last that the dead one wrote

    await store.write(presence.leave, cloud.plane.presence.id)
    await other.look()

    assert await store.read(present) == {(True, True)}


async def test_one_that_was_taken_for_dead_in_a_pass_writes_all_in_the_next(cloud: Cloud) -> None:
    store, living = cloud.plane.store, cloud.plane.presence
    await store.write(machines.offline, cloud.cluster.id)
    listing = cloud.driver

    class Freezing(FakeDriver):
        """Stands still in a list, until its process was buried and goes on under another name."""

        async def instances(self) -> tuple[SeenInstance, ...]:
            if living.id != "another":
                await store.write(presence.leave, living.id)
                living.id = "another"
                await store.write(enter_beside, "another")
            return tuple(await listing.instances())

    cloud.cluster.driver = Freezing(listing.inventory, name=listing.name)
    cloud._watch._written = None
    await cloud.look()
    assert await store.read(present) == {(False, False)}, "what is old is not written"

    await cloud.look()

    assert await store.read(present) == {(True, True)}


async def test_a_process_that_joins_writes_nothing_over_what_a_pass_has_seen(cloud: Cloud) -> None:
    """It has read the machines in a bad moment."""
    await cloud.look()
    bad = FakeDriver([], name=cloud.driver.name)

    await app.join(cloud.plane.store, cloud.clock, "fake", bad, (20000, 20999))

    assert await cloud.plane.store.read(present) == {(True, True)}


async def test_a_lease_in_the_name_of_one_that_was_buried_is_not_given(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    store, term = cloud.plane.store, cloud.around().term()
    await store.write(presence.leave, term.holder)

    assert await store.write(leases.lease, term, [key]) == []
    assert await store.read(leases.due, cloud.clock(), 10) == [key]


async def test_a_record_that_is_repeated_after_its_lease_was_given_back_is_not_made(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    store = cloud.plane.store
    (work,) = await store.write(leases.lease, cloud.around().term(), [key])
    await store.write(leases.finish, work, None, cloud.clock(), came_to=True)

    assert await store.write(leases.held, work) == "lost"
    assert await store.write(leases.reload, work, {}) is None
