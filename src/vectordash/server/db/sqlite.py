"""SQLite, where one computer is enough: a file in the data folder, one writer and a few readers beside it."""

import sqlite3
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import QueuePool

from vectordash.wire.errors import Damaged, Unavailable

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


class Sqlite:
    """A store's file. A connection waits `lock_timeout` seconds for another program that holds it."""

    writers = 1
    tries = 1
    """Whoever writes is alone, so nothing is ever in its way."""

    def __init__(self, url: URL, lock_timeout: float) -> None:
        self._url = url
        self._lock_timeout = lock_timeout

    def engine(self, *, pool: int, writes: bool, foreign_keys: bool = True) -> Engine:
        """Make the connections of readers, or of the writer."""
        engine = create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=pool,
            max_overflow=0,
            hide_parameters=True,  # values, some of them sealed, have no place in a traceback
            connect_args={
                "isolation_level": None,
                "check_same_thread": False,
                "timeout": self._lock_timeout,
            },
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

    def migrating_engine(self) -> Engine:
        """Make a connection on which tables can be rebuilt.

        SQLite rebuilds a table by dropping it, which foreign keys that point to it forbid; so they are off
        here, and `check_migrated` checks them as a whole.
        """
        return self.engine(pool=1, writes=True, foreign_keys=False)

    def snapshot_engine(self) -> Engine:
        """Make a connection that sees one state, from its first question to the end of its transaction."""
        return self.engine(pool=1, writes=False)

    def alone(self, connection: Connection) -> None:
        """See `Postgres`: a writer is alone anyhow."""

    def check_migrated(self, connection: Connection) -> None:
        """Refuse a migration that left a reference to nothing."""
        if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
            raise IntegrityError("a migration broke references", None, ValueError(broken[:10]))

    def outage(self, error: DBAPIError) -> Unavailable | None:
        """Tell a file that is full, locked, gone or damaged from a mistake of ours."""
        if not isinstance(error.orig, sqlite3.Error):
            return None  # of another database, while both are in use
        code: int | None = getattr(error.orig, "sqlite_errorcode", None)
        if code is None:
            return Unavailable(str(error.orig)) if isinstance(error, OperationalError) else None
        if code & 0xFF in _DAMAGES:
            return Damaged(str(error.orig))
        return Unavailable(str(error.orig)) if code & 0xFF in _OUTAGES else None

    def again(self, error: DBAPIError) -> bool:
        """See `Postgres`: never."""
        return False

    def number(self, connection: Connection) -> str | None:
        """See `Postgres`: a commit that fails has not been made."""
        return None

    def committed(self, engine: Engine, number: str) -> bool:
        """See `Postgres`."""
        raise NotImplementedError
