"""Who lives, and how a process learns that another is dead, or that it was taken for dead itself."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloud import HandClock
from databases import Database
from vectordash.server.db import presence
from vectordash.server.db.presence import BEAT, BURIED, Presence
from vectordash.server.db.session import Store

pytestmark = [pytest.mark.asyncio, pytest.mark.needs("postgres")]


@dataclass
class Watch:
    """A watch that stands still until it is moved."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        """Read it."""
        return self.seconds


@dataclass
class House:
    """Processes on one store, each with a watch of its own."""

    store: Store
    deaths: list[str] = field(default_factory=list)

    def enter(self, name: str) -> Presence:
        """Let a process begin."""
        made = Presence(self.store, HandClock(), name, lambda: self.deaths.append(name), watch=Watch())
        made.enter()
        return made

    async def live(self, *living: Presence, seconds: float) -> None:
        """Let time pass, in which these beat and look."""
        for _ in range(int(seconds / BEAT)):
            for one in living:
                one.watch.seconds += BEAT  # type: ignore[attr-defined]
                await one.look()

    def known(self) -> list[str]:
        """Who is in the store?"""
        return sorted(one.kind for one in self.store.ask(presence.all_processes))


@pytest.fixture
def house(tmp_path: Path, database: Database) -> Iterator[House]:
    store = Store(database.settings(tmp_path / "data").store_url)
    yield House(store)
    store.close()


@pytest.fixture
def shared_house(tmp_path: Path, postgres_server: Any) -> Iterator[House]:
    database = Database("postgresql", postgres_server)
    store = Store(database.settings(tmp_path / "data").store_url)
    yield House(store)
    store.close()
    database.forget()


async def test_those_who_live_are_left_alone(shared_house: House) -> None:
    one, other = shared_house.enter("one"), shared_house.enter("other")

    await shared_house.live(one, other, seconds=3 * BURIED)

    assert shared_house.known() == ["one", "other"]
    assert shared_house.deaths == []
    assert one.sure
    assert other.sure


async def test_one_that_is_silent_is_buried_and_its_work_taken_up(shared_house: House) -> None:
    one, _ = shared_house.enter("one"), shared_house.enter("silent")

    await shared_house.live(one, seconds=BURIED)
    assert shared_house.known() == ["one", "silent"], "watched for less than the time"
    await shared_house.live(one, seconds=BEAT)

    assert shared_house.known() == ["one"]
    assert shared_house.deaths == ["one"]


async def test_one_that_cannot_beat_is_no_longer_sure_before_it_can_be_buried(shared_house: House) -> None:
    one, other = shared_house.enter("one"), shared_house.enter("other")
    await shared_house.live(one, other, seconds=2)

    for _ in range(int(BURIED) - 1):
        other.watch.seconds += BEAT  # type: ignore[attr-defined]
        await shared_house.live(one, seconds=BEAT)

    assert not other.sure
    assert shared_house.known() == ["one", "other"]


async def test_one_that_was_buried_goes_on_under_another_name(shared_house: House) -> None:
    one, frozen = shared_house.enter("one"), shared_house.enter("frozen")
    name = frozen.id
    await shared_house.live(one, seconds=2 * BURIED)
    assert shared_house.known() == ["one"]

    await shared_house.live(one, frozen, seconds=BURIED)

    assert frozen.id != name
    assert frozen.sure
    assert shared_house.known() == ["frozen", "one"]


async def test_whoever_looked_away_buries_nobody(shared_house: House) -> None:
    """The database was away for all of them: that a number stands still means nothing."""
    one, other = shared_house.enter("one"), shared_house.enter("other")
    await shared_house.live(one, other, seconds=2)

    one.watch.seconds += 60  # type: ignore[attr-defined]
    other.watch.seconds += 60  # type: ignore[attr-defined]
    assert not one.sure
    await one.look()

    assert shared_house.known() == ["one", "other"]
    await shared_house.live(one, other, seconds=2 * BURIED)
    assert shared_house.known() == ["one", "other"]


async def test_one_that_beats_in_the_last_moment_is_not_buried(shared_house: House) -> None:
    late = shared_house.enter("late")
    store = shared_house.store
    numbers = await store.write(presence.beat, late.id, HandClock()())
    assert numbers is not None
    await store.write(presence.beat, late.id, HandClock()())

    assert not await store.write(presence.bury, late.id, numbers[late.id])

    assert shared_house.known() == ["late"]


async def test_one_that_leaves_is_not_waited_for(shared_house: House) -> None:
    one, other = shared_house.enter("one"), shared_house.enter("other")

    await other.leave()

    assert shared_house.known() == ["one"]
    await shared_house.live(one, seconds=BEAT)
    assert shared_house.deaths == []


async def test_on_sqlite_whoever_enters_is_alone(house: House) -> None:
    """Its file is locked by one server, so others are dead; on PostgreSQL they may live."""
    house.enter("one")
    second = house.enter("second")

    assert house.known() == (["one", "second"] if house.store.shared else ["second"])
    second.watch.seconds += 3600  # type: ignore[attr-defined]
    assert second.sure is not house.store.shared


async def test_a_clock_that_is_set_changes_nothing(shared_house: House) -> None:
    """What is written for people is of the clock; who lives is not."""
    one, other = shared_house.enter("one"), shared_house.enter("other")

    for hours in (1, -2, 1):
        one.clock.move(hours=hours)  # type: ignore[attr-defined]
        await shared_house.live(one, other, seconds=BURIED)

    assert shared_house.known() == ["one", "other"]
