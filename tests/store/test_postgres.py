"""PostgreSQL stopped, started, cut off or in its own way: a change is made once, and rightly said to be."""

import asyncio
import logging
import os
import re
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
import pytest
from sqlalchemy import Connection, insert, select, text, update

from databases import Postgres, private_postgres
from vectordash.server.db import facts
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings
from vectordash.wire.errors import Unavailable, Unsettled

pytestmark = [pytest.mark.asyncio, pytest.mark.needs("postgres")]

Fate = Literal[
    "committed",  # the server hears COMMIT, and its answer is lost
    "undone",  # COMMIT is lost on its way
    "gone",  # the same, and nobody can be reached afterwards
]


@dataclass
class Relay:
    """A line to a server that is cut once, when a COMMIT passes."""

    port: int
    """The server's."""
    fate: Fate | None = None
    cut: int = 0
    _listener: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with closing(client), closing(server), suppress(OSError):
            while asked := client.recv(65536):
                if self.fate is None or b"COMMIT" not in asked:
                    server.sendall(asked)
                    continue
                fate, self.fate = self.fate, None
                self.cut += 1
                if fate == "gone":
                    self.close()
                client.shutdown(socket.SHUT_RDWR)
                if fate == "committed":
                    server.sendall(asked)
                    while server.recv(65536):  # its answer, if the other thread has not taken it
                        pass
                server.shutdown(socket.SHUT_RDWR)  # to close it is not enough while the other thread reads
                return

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while answered := server.recv(65536):
                client.sendall(answered)

    def close(self) -> None:
        """Take no more calls."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


NewStore = Callable[..., Store]


@dataclass
class Place:
    """A database for one test."""

    postgres: Postgres
    name: str
    stores: list[Store] = field(default_factory=list)

    def store(self, port: int | None = None, password: str = "secret") -> Store:  # noqa: S107
        """Open it, by way of a port."""
        url = self.postgres.url(self.name).replace(
            f":{self.postgres.port}/", f":{port or self.postgres.port}/"
        )
        self.stores.append(Store(Settings(database=url.replace(":secret@", f":{password}@")).store_url))
        return self.stores[-1]

    def hang_up_all(self) -> None:
        """Cut the connections of everybody, as an administrator does."""
        hang_up = "select pg_terminate_backend(pid) from pg_stat_activity where datname ="
        self.postgres.do(f"{hang_up} '{self.name}'")


@pytest.fixture
def place(postgres: Postgres) -> Iterator[Place]:
    """A database on the session's server, with the facts `a` and `b`, both 0."""
    yield from _place(postgres)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """A server that a test may stop, and starts again."""
    with private_postgres() as made:
        yield made


@pytest.fixture
def own_place(own_server: Postgres) -> Iterator[Place]:
    """A database on it."""
    yield from _place(own_server)


def _place(server: Postgres) -> Iterator[Place]:
    made = Place(server, server.new())
    store = made.store()
    store.change(facts.facts.create)
    store.change(
        lambda connection: connection.execute(
            insert(facts.facts), [{"name": name, "value": "0"} for name in ("a", "b")]
        )
    )
    yield made
    for one in made.stores:
        one.close()
    server.drop(made.name)


def more(connection: Connection, name: str) -> None:
    """Raise a fact by one; made twice it shows."""
    one_more = select(facts.facts.c.value).where(facts.facts.c.name == name).with_for_update()
    value = int(connection.execute(one_more).scalar_one()) + 1
    connection.execute(update(facts.facts).where(facts.facts.c.name == name).values(value=str(value)))


def value(connection: Connection, name: str) -> str | None:
    return facts.fact(connection, name)


@dataclass
class Rival:
    """A change that raises two facts, and meets another one in between, the first time."""

    meeting: threading.Barrier
    runs: int = 0

    def __call__(self, connection: Connection, first: str, second: str) -> None:
        """Make it."""
        self.runs += 1
        connection.execute(text("set local deadlock_timeout = 50"))
        more(connection, first)
        if self.runs == 1:
            self.meeting.wait(10)
        more(connection, second)


async def test_of_two_changes_in_each_others_way_both_are_made_once(place: Place) -> None:
    store, meeting = place.store(), threading.Barrier(2)
    one, other = Rival(meeting), Rival(meeting)

    await asyncio.gather(store.write(one, "a", "b"), store.write(other, "b", "a"))

    assert one.runs + other.runs == 3
    assert [store.ask(value, name) for name in "ab"] == ["2", "2"]


async def test_a_connection_cut_between_two_changes_is_not_noticed(place: Place) -> None:
    store = place.store()
    await store.write(more, "a")
    assert await store.read(value, "a") == "1"

    place.hang_up_all()

    await store.write(more, "a")
    assert await store.read(value, "a") == "2"


@dataclass
class Interrupted:
    """A change that is cut off in its middle, some times."""

    place: Place
    times: int
    runs: int = 0

    def __call__(self, connection: Connection) -> None:
        """Make it, or not."""
        self.runs += 1
        more(connection, "a")
        if self.runs <= self.times:
            self.place.hang_up_all()
        more(connection, "b")


async def test_a_change_cut_off_in_its_middle_is_made_once_in_the_end(place: Place) -> None:
    store, change = place.store(), Interrupted(place, times=2)

    await store.write(change)

    assert change.runs == 3
    assert [store.ask(value, name) for name in "ab"] == ["1", "1"]


async def test_a_change_that_is_cut_off_every_time_is_given_up(place: Place) -> None:
    store, change = place.store(), Interrupted(place, times=1000)

    with pytest.raises(Unavailable):
        await store.write(change)

    assert change.runs <= 4
    assert [store.ask(value, name) for name in "ab"] == ["0", "0"]


@pytest.mark.parametrize("fate", ["committed", "undone"])
async def test_a_change_whose_commit_was_not_answered_is_made_once_and_said_to_be(
    place: Place, fate: Fate
) -> None:
    relay = Relay(place.postgres.port)
    store = place.store(relay.own_port)
    runs = 0

    def change(connection: Connection) -> str:
        nonlocal runs
        runs += 1
        more(connection, "a")
        return "made"

    relay.fate = fate
    assert await store.write(change) == "made"

    assert (relay.cut, runs) == (1, 1 if fate == "committed" else 2)
    assert await store.read(value, "a") == "1"
    relay.close()


async def test_a_change_whose_fate_cannot_be_learnt_is_said_to_be_unsettled(place: Place) -> None:
    relay = Relay(place.postgres.port)
    store = place.store(relay.own_port)

    relay.fate = "gone"
    with pytest.raises(Unsettled):
        await store.write(more, "a")

    assert relay.cut == 1
    assert place.store().ask(value, "a") == "0"


async def test_a_change_that_changed_nothing_is_not_asked_about(place: Place) -> None:
    """It has no number, and to make it again does no harm."""
    relay = Relay(place.postgres.port)
    store = place.store(relay.own_port)

    relay.fate = "committed"

    assert await store.write(value, "a") == "0"
    relay.close()


async def test_what_somebody_else_holds_is_unavailable(place: Place) -> None:
    store = place.store()

    def impatient(connection: Connection) -> None:
        connection.execute(text("set local lock_timeout = 50"))
        more(connection, "a")

    with psycopg.connect(place.postgres.url(place.name)) as other:
        other.execute("select from facts for update")
        with pytest.raises(Unavailable, match="somebody else holds"):
            await store.write(impatient)

    await store.write(impatient)


async def test_no_wait_lasts_for_ever(place: Place) -> None:
    """Not even for a process that was stopped in the middle of a transaction: it loses it."""
    store = place.store()

    def limits(connection: Connection) -> list[str]:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        return [str(connection.execute(text(f"show {name}")).scalar()) for name in names]

    assert await store.write(limits) == ["10s", "3s", "4s"]
    assert await store.read(limits) == ["10s", "3s", "4s"]


async def test_a_stopped_server_is_unavailable_at_once_and_used_again_when_it_is_back(
    own_place: Place,
) -> None:
    store = own_place.store()
    await store.write(more, "a")

    own_place.postgres.stop()
    try:
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await store.read(value, "a")
            with pytest.raises(Unavailable):
                await store.write(more, "a")
    finally:
        own_place.postgres.start()

    await store.write(more, "a")
    assert await store.read(value, "a") == "2"


async def test_nobody_notices_a_server_that_was_started_anew(own_place: Place) -> None:
    store = own_place.store()
    assert await store.read(value, "a") == "0"
    await store.write(more, "a")

    own_place.postgres.stop("immediate")
    own_place.postgres.start()

    assert await asyncio.gather(*(store.read(value, "a") for _ in range(8))) == ["1"] * 8
    await store.write(more, "a")
    assert await store.read(value, "a") == "2"


@pytest.mark.parametrize("trouble", ["wrong password", "no server", "bad statement"])
async def test_no_password_is_said(place: Place, trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    password = "hunter-2" if trouble == "wrong password" else "secret"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        nobody = probe.getsockname()[1]
    store = place.store(nobody if trouble == "no server" else None, password)

    def question(connection: Connection) -> Any:
        return connection.execute(text("select * from nowhere" if trouble == "bad statement" else "select 1"))

    said = []
    for ask in (store.read, store.write):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
            await ask(question)
        said.append("".join(traceback.format_exception(caught.value)))
    said += [repr(store), str(store.url), repr(store.url)]
    said += [f"{record.getMessage()} {record.args}" for record in caplog.records]

    assert not re.search(rf":{password}|{password}@|password=", "\n".join(said))


async def test_a_server_that_takes_everything_and_does_nothing_keeps_nobody_for_ever(
    own_place: Place,
) -> None:
    """Its processes stand still: no limit of its own is met, and its kernel keeps the connections."""
    store = Store(own_place.store().url.render_as_string(hide_password=False), longest=1.0)
    own_place.stores.append(store)
    await store.write(facts.state, "a", "before")
    await store.read(facts.fact, "a")
    pids = own_place.postgres.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            await store.read(facts.fact, "a")
        with pytest.raises(Unsettled):
            await store.write(facts.state, "a", "perhaps")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    await store.write(facts.state, "a", "after")
    assert await store.read(facts.fact, "a") == "after"
