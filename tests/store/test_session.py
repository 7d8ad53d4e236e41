"""The store: threads, transactions, and what its callers are told when it cannot."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from databases import Database
from vectordash.server.db import facts
from vectordash.server.db.session import Store
from vectordash.wire.errors import Unavailable

pytestmark = pytest.mark.asyncio


NewStore = Callable[..., Store]


@pytest.fixture
def new_store(tmp_path: Path, database: Database) -> Iterator[NewStore]:
    """Let a test make a store with the table of facts, on each database."""
    made: list[Store] = []

    def make(**limits: Any) -> Store:
        made.append(Store(database.url(tmp_path), **limits))
        made[-1].change(facts.facts.create)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def store(new_store: NewStore) -> Store:
    """A store with the table of facts."""
    return new_store()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    """The same, on SQLite alone."""
    made = Store(f"sqlite:///{tmp_path / 'store.db'}", lock_timeout=0.01)
    made.change(facts.facts.create)
    yield made
    made.close()


def say(connection: Connection, value: str) -> None:
    facts.state(connection, "it", value)


def said(connection: Connection) -> str | None:
    return facts.fact(connection, "it")


@dataclass
class Gate:
    """A change that takes until it is let go."""

    begun: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, connection: Connection) -> None:
        """Change something, slowly."""
        self.begun.set()
        assert self.open.wait(10)
        say(connection, "slowly")


async def test_a_fact_is_stated_and_stated_anew(store: Store) -> None:
    assert await store.read(said) is None

    await store.write(say, "one")
    await store.write(say, "two")

    assert await store.read(said) == "two"


async def test_a_change_is_made_wholly_or_not_at_all(store: Store) -> None:
    def half(connection: Connection) -> None:
        say(connection, "half")
        raise RuntimeError("and no further")

    with pytest.raises(RuntimeError, match="no further"):
        await store.write(half)

    assert await store.read(said) is None


async def test_a_question_cannot_change_anything(store: Store) -> None:
    with pytest.raises(Unavailable, match=r"readonly|read-only"):
        await store.read(say, "by a reader")

    assert await store.read(said) is None


async def test_a_question_sees_one_state_while_a_change_is_made(store: Store) -> None:
    await store.write(say, "before")
    gate = Gate()
    changing = asyncio.create_task(store.write(gate))
    await asyncio.to_thread(gate.begun.wait, 10)

    assert await store.read(said) == "before"

    gate.open.set()
    await changing
    assert await store.read(said) == "slowly"


async def test_a_change_whose_caller_is_gone_is_made_all_the_same(store: Store) -> None:
    gate = Gate()
    changing = asyncio.create_task(store.write(gate))
    await asyncio.to_thread(gate.begun.wait, 10)

    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    gate.open.set()
    await store.write(lambda _: None)

    assert await store.read(said) == "slowly"


async def test_a_change_that_had_to_wait_too_long_is_not_made(new_store: NewStore) -> None:
    store = new_store(patience=0.0)

    with pytest.raises(Unavailable, match="for its turn"):
        await store.write(say, "too late")

    assert store.ask(said) is None


async def test_too_many_waiting_changes_are_refused_at_once(new_store: NewStore) -> None:
    store = new_store(most_waiting=2)
    gate = Gate()
    first = asyncio.create_task(store.write(gate))
    second = asyncio.create_task(store.write(gate))
    await asyncio.to_thread(gate.begun.wait, 10)

    with pytest.raises(Unavailable, match="2 changes are waiting"):
        await store.write(say, "third")

    assert store.waiting == 2
    gate.open.set()
    await asyncio.gather(first, second)
    assert (store.ask(said), store.waiting) == ("slowly", 0)


async def test_changes_are_made_in_the_order_in_which_they_were_asked_for(sqlite: Store) -> None:
    """On PostgreSQL several are made at once."""
    store = sqlite
    order: list[int] = []

    await asyncio.gather(*(store.write(lambda _, n=n: order.append(n)) for n in range(50)))

    assert order == list(range(50))
    assert store.waiting == 0


async def test_a_broken_constraint_is_no_outage(store: Store) -> None:
    def twice(connection: Connection) -> None:
        for _ in range(2):
            connection.execute(facts.facts.insert().values(name="it", value="x"))

    with pytest.raises(IntegrityError):
        await store.write(twice)


async def test_malformed_sql_is_no_outage(store: Store) -> None:
    with pytest.raises(DBAPIError, match=r"no such table|does not exist"):
        await store.read(lambda connection: connection.execute(text("select * from nowhere")))


async def test_foreign_keys_are_enforced(store: Store) -> None:
    def orphan(connection: Connection) -> None:
        connection.execute(text("create table child (fact text references facts (name))"))
        connection.execute(text("insert into child values ('nobody')"))

    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        await store.write(orphan)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let somebody else hold the database for writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        yield
        other.execute("rollback")


async def test_a_database_that_somebody_else_locks_is_unavailable(sqlite: Store, tmp_path: Path) -> None:
    with locked(tmp_path / "store.db"), pytest.raises(Unavailable, match="locked"):
        await sqlite.write(say, "in vain")

    await sqlite.write(say, "afterwards")
    assert sqlite.ask(said) == "afterwards"


async def test_a_full_database_is_unavailable_and_loses_nothing(sqlite: Store) -> None:
    store = sqlite
    await store.write(say, "before")
    await store.write(lambda connection: connection.execute(text("pragma max_page_count = 1")))

    with pytest.raises(Unavailable, match="full"):
        await store.write(say, "x" * 100_000)

    assert await store.read(said) == "before"


async def test_a_damaged_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(os.urandom(8192))
    store = Store(f"sqlite:///{path}")

    with pytest.raises(Unavailable, match="not a database"):
        await store.read(said)
    with pytest.raises(Unavailable, match="not a database"):
        await store.write(say, "in vain")

    store.close()


async def test_a_missing_folder_is_unavailable(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'nowhere' / 'store.db'}")

    with pytest.raises(Unavailable, match="unable to open"):
        await store.read(said)

    store.close()
