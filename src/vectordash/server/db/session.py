"""Questions and changes, run in threads: `await store.read(question, …)`, `await store.write(change, …)`.

A question or a change is a plain function whose first argument is the connection. It runs in a thread, in
one transaction, and cannot await: so no network call is ever made inside a transaction. A change may be run
more than once before it is made (two were in each other's way), so it changes nothing but the database. A
caller that is cancelled does not stop the thread; the change goes on and commits, so a cancelled caller
assumes “done”.

What differs between SQLite (`sqlite.py`) and PostgreSQL (`postgres.py`) stands there. On PostgreSQL a
question of several statements sees each in a state of its own; what must be of one state is one statement,
or a change.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vectordash.server.db.postgres import Postgres
from vectordash.server.db.sqlite import Sqlite
from vectordash.wire.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """A database and the threads that speak to it.

    A change waits for its turn at most `patience` seconds, and behind at most `most_waiting` others; a
    connection waits `lock_timeout` seconds for another program that holds SQLite's file.
    """

    def __init__(
        self,
        url: str,
        *,
        readers: int = 4,
        patience: float = 2.0,
        most_waiting: int = 2000,
        lock_timeout: float = 5.0,
    ) -> None:
        self.url = make_url(url)
        self.shared = self.url.get_backend_name() == "postgresql"
        """Whether several processes may use it: then none is told what the others do."""
        self._patience = patience
        self._most_waiting = most_waiting
        self._kind = Postgres(self.url) if self.shared else Sqlite(self.url, lock_timeout)
        self._writer = self._kind.engine(pool=self._kind.writers, writes=True)
        self._reader = self._kind.engine(pool=readers, writes=False)
        self._write_threads = ThreadPoolExecutor(self._kind.writers, "store-write")
        self._read_threads = ThreadPoolExecutor(readers, "store-read")
        self._waiting = 0

    async def read(
        self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Ask; sees one consistent state. Raises `Unavailable` if the database does not answer."""

        def run() -> T:
            return self.ask(question, *args, **kwargs)

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._read_threads, run))

    async def write(
        self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Change, all or nothing; on disk when this returns. Raises `Unavailable` if it was not done."""
        if self._waiting >= self._most_waiting:
            raise Unavailable(f"{self._waiting} changes are waiting")
        asked = time.monotonic()

        def run() -> T:
            if (waited := time.monotonic() - asked) > self._patience:
                raise Unavailable(f"a change waited {waited:.1f} s for its turn")
            return self.change(change, *args, **kwargs)

        # Counted on the loop alone: a number that two threads change is wrong one day.
        made = asyncio.get_running_loop().run_in_executor(self._write_threads, run)
        self._waiting += 1
        made.add_done_callback(self._made)
        return await asyncio.shield(made)

    def _made(self, _: object) -> None:
        self._waiting -= 1

    def ask(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` for callers outside the event loop: commands."""
        return self._tried(partial(self._asked_once, question, *args, **kwargs))

    def change(self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for callers outside the event loop: commands, and the start of the server."""
        return self._tried(partial(self._made_once, change, *args, **kwargs))

    def _tried(self, deed: Callable[[], T]) -> T:
        """Do it, and again if it certainly left nothing and may do better at once.

        Tells a database that cannot be reached, is full, locked or damaged from a mistake of ours: a broken
        constraint and malformed SQL stay what they are, a 500 with its traceback.
        """
        for left in reversed(range(self._kind.tries)):
            try:
                return deed()
            except PoolTimeout as error:
                raise Unavailable("every connection to it is in use") from error
            except DBAPIError as error:
                if left and self._kind.again(error):
                    continue
                if (outage := self._kind.outage(error)) is None:
                    raise
                raise outage from error
        raise AssertionError("unreachable: the last try returns or raises")

    def _asked_once(
        self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._reader.connect() as connection:
            return question(connection, *args, **kwargs)

    def _made_once(
        self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Make a change in one transaction. A commit whose answer was lost is asked about."""
        with self._writer.connect() as connection:
            result = change(connection, *args, **kwargs)
            number = self._kind.number(connection)
            try:
                connection.commit()
            except DBAPIError as error:
                if number is None or not error.connection_invalidated:
                    raise
                if not self._kind.committed(self._writer, number):
                    raise
        return result

    def alone(self, connection: Connection) -> None:
        """Keep whoever asks for the same, in any process, waiting until this transaction ends."""
        self._kind.alone(connection)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Give a connection on which tables can be rebuilt, in one transaction that nobody shares."""
        engine = self._kind.migrating_engine()
        try:
            with engine.begin() as connection:
                self._kind.alone(connection)
                yield connection
                self._kind.check_migrated(connection)
        except DBAPIError as error:
            if (outage := self._kind.outage(error)) is None:
                raise
            raise outage from error
        finally:
            engine.dispose()

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a connection that sees one state of everything, however long it reads; nobody waits for it."""
        engine = self._kind.snapshot_engine()
        try:
            with engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            if (outage := self._kind.outage(error)) is None:
                raise
            raise outage from error
        finally:
            engine.dispose()

    @property
    def waiting(self) -> int:
        """Changes that were asked for and are not made yet."""
        return self._waiting

    def hang_up(self) -> None:
        """Let go of the connections; the next question makes new ones."""
        self._writer.dispose()
        self._reader.dispose()

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""
        self._write_threads.shutdown()
        self._read_threads.shutdown()
        self.hang_up()
