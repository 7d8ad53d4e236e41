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
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vectordash.server.db.postgres import Postgres
from vectordash.server.db.sqlite import Sqlite
from vectordash.wire.errors import Unavailable, Unsettled

P = ParamSpec("P")
T = TypeVar("T")


_SILENT = "it does not answer"


class Store:
    """A database and the threads that speak to it.

    A change waits for its turn at most `patience` seconds, and behind at most `most_waiting` others; a
    connection waits `lock_timeout` seconds for another program that holds SQLite's file. Nobody waits for
    more than `longest` seconds, which is longer than any end that the database itself puts to a wait: that
    is for one that takes everything and does nothing, such as one whose disk hangs.
    """

    def __init__(
        self,
        url: str,
        *,
        readers: int = 4,
        patience: float = 2.0,
        most_waiting: int = 2000,
        lock_timeout: float = 5.0,
        longest: float = 15.0,
    ) -> None:
        self.url = make_url(url)
        self.shared = self.url.get_backend_name() == "postgresql"
        """Whether several processes may use it: then none is told what the others do."""
        self._patience = patience
        self._most_waiting = most_waiting
        self._longest = longest
        self._kind = Postgres(self.url) if self.shared else Sqlite(self.url, lock_timeout)
        self._writer = self._kind.engine(pool=self._kind.writers, writes=True)
        self._reader = self._kind.engine(pool=readers, writes=False)
        self._write_threads = ThreadPoolExecutor(self._kind.writers, "store-write")
        self._read_threads = ThreadPoolExecutor(readers, "store-read")
        self._spare = self._kind.engine(pool=1, writes=True)
        self._spare_thread = ThreadPoolExecutor(1, "store-spare")
        self._waiting = 0
        self._asking = 0

    async def read(
        self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Ask; a single statement sees one consistent state. Raises `Unavailable` if there is no answer."""
        if self._asking >= self._most_waiting:
            raise Unavailable(f"{self._asking} questions are waiting")
        run = partial(self.ask, question, *args, **kwargs)
        asked = asyncio.get_running_loop().run_in_executor(self._read_threads, run)
        self._asking += 1
        asked.add_done_callback(self._asked)
        if not await _done(asked, self._longest):
            raise Unavailable(_SILENT)
        return asked.result()

    async def write(
        self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Change, all or nothing; on disk when this returns.

        Raises `Unavailable` if it was not done, `Unsettled` if that is not known.
        """
        if self._waiting >= self._most_waiting:
            raise Unavailable(f"{self._waiting} changes are waiting")
        began: list[float] = []
        asked = time.monotonic()

        def run() -> T:
            began.append(time.monotonic())
            if (waited := began[0] - asked) > self._patience:
                raise Unavailable(f"a change waited {waited:.1f} s for its turn")
            return self.change(change, *args, **kwargs)

        # Counted on the loop alone: a number that two threads change is wrong one day.
        made = asyncio.get_running_loop().run_in_executor(self._write_threads, run)
        self._waiting += 1
        made.add_done_callback(self._made)
        if not await _done(made, self._longest):
            raise Unsettled if began else Unavailable(_SILENT)
        return made.result()

    async def write_at_once(
        self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Change past all that wait, on a thread and a connection kept for it: for signs of life alone."""
        run = partial(self._tried, partial(self._made_once, self._spare, change, *args, **kwargs))
        made = asyncio.get_running_loop().run_in_executor(self._spare_thread, run)
        made.add_done_callback(_look_at)
        if not await _done(made, self._longest):
            raise Unavailable(_SILENT)
        return made.result()

    def _asked(self, asked: "asyncio.Future[T]") -> None:
        self._asking -= 1
        _look_at(asked)

    def _made(self, made: "asyncio.Future[T]") -> None:
        self._waiting -= 1
        _look_at(made)

    def ask(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` for callers outside the event loop: commands."""
        return self._tried(partial(self._asked_once, question, *args, **kwargs))

    def change(self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for callers outside the event loop: commands, and the start of the server."""
        return self._tried(partial(self._made_once, self._writer, change, *args, **kwargs))

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
        self,
        engine: Engine,
        change: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Make a change in one transaction. A commit whose answer was lost is asked about."""
        with engine.connect() as connection:
            result = change(connection, *args, **kwargs)
            number = self._kind.number(connection)
            try:
                connection.commit()
            except DBAPIError as error:
                if number is None or not error.connection_invalidated:
                    raise
                if not self._kind.committed(engine, number):
                    raise
        return result

    def alone(self, connection: Connection) -> None:
        """Keep whoever asks for the same, in any process, waiting until this transaction ends."""
        self._kind.alone(connection)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Give a connection on which tables can be rebuilt, in one transaction that nobody shares."""
        with self._apart(self._kind.migrating_engine()) as connection, connection.begin():
            self._kind.alone(connection)
            yield connection
            self._kind.check_migrated(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a connection that sees one state of everything, however long it reads; nobody waits for it."""
        with self._apart(self._kind.snapshot_engine()) as connection:
            yield connection

    @contextmanager
    def _apart(self, engine: Engine) -> Iterator[Connection]:
        """Give a connection of its own, for what takes long."""
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
        for engine in (self._writer, self._reader, self._spare):
            engine.dispose()

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""
        self._write_threads.shutdown()
        self._read_threads.shutdown()
        self._spare_thread.shutdown()
        self.hang_up()


def of_file(file: Path) -> Store:
    """Open a store in any file of SQLite's: a backup, or one that is to take another's place."""
    return Store(f"sqlite:///{quote(str(file.absolute()))}", readers=1)


async def _done(asked: "asyncio.Future[T]", longest: float) -> bool:
    """Wait for a thread, but not for ever. A caller that is cancelled leaves the thread at work."""
    done, _ = await asyncio.wait({asked}, timeout=longest)
    return bool(done)


def _look_at(made: "asyncio.Future[T]") -> None:
    """Take note of an error whose caller is gone."""
    if not made.cancelled():
        made.exception()
