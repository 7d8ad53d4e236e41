"""Questions and changes, run in threads: `await store.read(question, …)`, `await store.write(change, …)`.

A question or a change is a plain function whose first argument is the connection. It runs in a thread, in
one transaction, and cannot await: so no network call is ever made inside a transaction. SQLite: one writer
thread with its one connection, a few readers beside it. A caller that is cancelled does not stop the
thread; the change goes on and commits, so a cancelled caller assumes “done”.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from vectordash.wire.errors import Damaged, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
"""SQLite's codes for what is no mistake of ours. The driver's classes do not tell: malformed SQL is an
“operational” error to it, and a damaged file is not."""
_DAMAGES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Those of them that waiting does not mend."""


class Store:
    """A database and the threads that speak to it.

    A change waits for its turn at most `patience` seconds, and behind at most `most_waiting` others; a
    connection waits `lock_timeout` seconds for another program that holds the database.
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
        self.url = url
        self._patience = patience
        self._most_waiting = most_waiting
        self._writer = _sqlite(url, pool=1, writes=True, lock_timeout=lock_timeout)
        self._reader = _sqlite(url, pool=readers, writes=False, lock_timeout=lock_timeout)
        self._write_thread = ThreadPoolExecutor(1, "store-write")
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
        made = asyncio.get_running_loop().run_in_executor(self._write_thread, run)
        self._waiting += 1
        made.add_done_callback(self._made)
        return await asyncio.shield(made)

    def _made(self, _: object) -> None:
        self._waiting -= 1

    def ask(self, question: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` for callers outside the event loop: commands."""
        with _told(), self._reader.connect() as connection:
            return question(connection, *args, **kwargs)

    def change(self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for callers outside the event loop: commands, and the start of the server."""
        with _told(), self._writer.begin() as connection:
            return change(connection, *args, **kwargs)

    @property
    def engine(self) -> Engine:
        """The writer's engine."""
        return self._writer

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Give a connection on which tables can be rebuilt, in one transaction.

        SQLite rebuilds a table by dropping it, which foreign keys that point to it forbid; so they are off
        here, and checked as a whole before the commit.
        """
        engine = _sqlite(self.url, pool=1, writes=True, lock_timeout=5.0, foreign_keys=False)
        try:
            with _told(), engine.begin() as connection:
                yield connection
                if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
                    raise IntegrityError("a migration broke references", None, ValueError(broken[:10]))
        finally:
            engine.dispose()

    @property
    def waiting(self) -> int:
        """Changes that were asked for and are not made yet."""
        return self._waiting

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._writer.dispose()
        self._reader.dispose()


@contextmanager
def _told() -> Iterator[None]:
    """Tell a database that cannot be reached, is full, locked or damaged from a mistake of ours.

    A broken constraint and malformed SQL stay what they are: a 500 with its traceback.
    """
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable(str(error)) from error
    except DBAPIError as error:
        if not _is_outage(error):
            raise
        damaged = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _DAMAGES
        raise (Damaged if damaged else Unavailable)(str(error.orig)) from error


def _is_outage(error: DBAPIError) -> bool:
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return isinstance(error, OperationalError) if code is None else code & 0xFF in _OUTAGES


def _sqlite(url: str, *, pool: int, writes: bool, lock_timeout: float, foreign_keys: bool = True) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool,
        max_overflow=0,
        hide_parameters=True,  # values, some of them sealed, have no place in a traceback
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": lock_timeout},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
            *(() if writes else ("query_only=ON",)),
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
