"""Killed at any line: whatever the process was doing, the next one brings everything to the same end.

Each story is told once without a death, which shows how many moments it has; then once for each moment, with
a new process taking over there. The API's own part of a story is not what dies here.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cloud import HandClock
from databases import Database
from mortal import Fate, Killed, Process, World, delete, make_world, new_cluster, rent
from sights import attempts_of, demand_order, row_of
from vectordash.server.drivers.base import StartFailed, Unreachable
from vectordash.server.drivers.fake import FakeDriver, Fault

ALWAYS = 1_000_000
FIRST, SECOND = "GPU-m1-0", "GPU-m1-1"

Chapter = Callable[[FakeDriver], None]


@dataclass(frozen=True)
class Story:
    """What is asked of a control plane and what befalls its cluster, between two times of rest."""

    moments: int
    """At which the process may die: so many does it take."""
    end: tuple[Any, ...]
    """(reason, error, [GPU of each attempt], ever active, instances left)"""
    faults: tuple[Fault, ...] = ()
    befalls: Chapter | None = None
    """Once it is active."""
    deleted: bool = False


def stop(cluster: FakeDriver) -> None:
    """Let everything stop."""
    for name in cluster.there:
        cluster.stop(name)


def vanish(cluster: FakeDriver) -> None:
    """Let everything be gone."""
    for name in list(cluster.there):
        cluster.vanish(name)


BROKEN = StartFailed("broken")
BUSY = StartFailed("busy", transient=True)
STORIES = {
    "life": Story(13, ("deleted", False, [1], True, 0), deleted=True),
    "other gpu": Story(
        13, (None, False, [1, 2], True, 1), (Fault("ensure", BROKEN, gpu=FIRST, times=ALWAYS),)
    ),
    "made but broken": Story(
        15, (None, False, [1, 2], True, 1), (Fault("ensure", BROKEN, gpu=FIRST, after=True, times=ALWAYS),)
    ),
    "no gpu works": Story(
        25, ("not_started", True, [1, 2, 2], False, 0), (Fault("login", BUSY, times=ALWAYS),)
    ),
    "lost answers": Story(
        21,
        ("deleted", False, [1], True, 0),
        (Fault("ensure", Unreachable("?"), after=True), Fault("remove", Unreachable("?"), after=True)),
        deleted=True,
    ),
    "stopped": Story(14, (None, False, [1], True, 1), befalls=stop),
    "vanished": Story(13, ("lost", True, [1], True, 0), befalls=vanish),
}


async def tell(story: Story, world: World, fate: Fate, *, buries: bool = True) -> tuple[Any, ...]:
    """Tell a story; a new process takes over where one dies. Gives how it ends."""
    clock, cluster = HandClock(), new_cluster()
    world.anew()

    def begin(its_fate: Fate) -> Process:
        return Process(world, clock, cluster, its_fate, buries)

    process = begin(fate)
    key = await rent(process)
    cluster.faults = [dataclasses.replace(fault) for fault in story.faults]

    async def settle() -> None:
        nonlocal process
        try:
            await process.settle()
        except Killed:
            process.close()
            process = begin(Fate())
            await process.settle()

    await settle()
    if story.befalls is not None:
        story.befalls(cluster)
        await settle()
    if story.deleted and process.store.ask(row_of, key).ended_at is None:
        await delete(process, key)
        await settle()
    demand_order(process.store, cluster)
    row = process.store.ask(row_of, key)
    tried = [one.gpu_id for one in process.store.ask(attempts_of, key)]
    process.close()
    return row.end_reason, row.error, tried, row.active_at is not None, len(cluster.there)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_database: Database) -> Iterator[World]:
    """Make what all stories begin with."""
    made = asyncio.run(make_world(shared_database, tmp_path_factory.mktemp("world") / "made"))
    yield made
    made.store.close()


@pytest.mark.parametrize("name", STORIES)
def test_without_a_death_a_story_ends_as_it_should(world: World, name: str) -> None:
    fate = Fate()

    end = asyncio.run(tell(STORIES[name], world, fate))

    assert end == STORIES[name].end
    assert len(fate.passed) == STORIES[name].moments, "every moment must have its turn below"


@pytest.mark.parametrize(
    ("name", "moment"), [(name, at + 1) for name, story in STORIES.items() for at in range(story.moments)]
)
def test_killed_at_any_moment_it_ends_the_same(world: World, name: str, moment: int) -> None:
    fate = Fate(at=moment)

    end = asyncio.run(tell(STORIES[name], world, fate))

    assert len(fate.passed) == moment, "it died there"
    assert end == STORIES[name].end


@pytest.mark.parametrize("moment", range(1, STORIES["life"].moments + 1))
def test_another_process_takes_over_when_the_lease_of_the_dead_one_is_over(world: World, moment: int) -> None:
    """Its start may be given up meanwhile, for it took too long; but everything is in order."""
    reason, error, *_, left = asyncio.run(tell(STORIES["life"], world, Fate(at=moment), buries=False))

    assert (reason, error, left) == ("deleted", False, 0)
