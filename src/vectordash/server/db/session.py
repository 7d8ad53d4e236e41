"""Questions and changes, run in threads: `await store.read(question, …)`, `await store.write(change, …)`.

A question or a change is a plain function whose first argument is the connection. It runs in a thread, in
one transaction, and cannot await: so no network call is ever made inside a transaction. SQLite: one writer
thread with its one connection, a few readers beside it. A caller that is cancelled does not stop the
thread; the change goes on and commits, so a cancelled caller assumes “done”.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from vectordash.wire.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_WAIT = 2.0
"""Seconds a change may wait for the writer before its caller is told to come back."""
_LONGEST_QUEUE = 2000
"""Changes that may wait at once; beyond it the answer is “busy” without waiting."""


class Store:
    """A database and the threads that speak to it."""

    def __init__(self, url: str, *, readers: int = 4) -> None:
        self.url = url
        self._writer = _sqlite(url, pool=1, writes=True)
        self._reader = _sqlite(url, pool=readers, writes=False)
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
        if self._waiting >= _LONGEST_QUEUE:
            raise Unavailable(f"{self._waiting} changes are waiting")
        asked = time.monotonic()

        def run() -> T:
            self._waiting -= 1
            if (waited := time.monotonic() - asked) > _LONGEST_WAIT:
                raise Unavailable(f"a change waited {waited:.1f} s for its turn")
            return self.change(change, *args, **kwargs)

        self._waiting += 1
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._write_thread, run))

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
        """The writer's engine, for migrations."""
        return self._writer

    @property
    def waiting(self) -> int:
        """Changes that wait for the writer now."""
        return self._waiting

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._writer.dispose()
        self._reader.dispose()


@contextmanager
def _told() -> Iterator[None]:
    """Tell a database that cannot be reached, is full or is locked from a mistake of ours.

    A broken constraint and malformed SQL stay what they are: a 500 with its traceback.
    """
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        raise Unavailable(str(getattr(error, "orig", error))) from error


def _sqlite(url: str, *, pool: int, writes: bool) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool,
        max_overflow=0,
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": 5},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=5000",
            *(() if writes else ("query_only=ON",)),
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
