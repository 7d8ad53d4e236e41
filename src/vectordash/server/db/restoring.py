"""Puts another store where one is used: a restored backup, or SQLite's into PostgreSQL. All, or nothing.

What stood there is kept (SQLite), or there must have been nothing (PostgreSQL). A process that is killed
leaves the old store or the new one: into a store that works, SQLite writes the new content in one
transaction, so that not even a command that has it open is misled; one that does not is replaced by renaming.
PostgreSQL is filled in one transaction. The caller holds the data folder's lock.
"""

import contextlib
import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, MetaData, delete, text

from vectordash.server.db import copying
from vectordash.server.db.backup import beside, kept, put, to_disk
from vectordash.server.db.session import Store
from vectordash.server.trouble import Trouble

_PAGES = 4096
_PATIENCE = 10.0
"""Seconds that another program may hold the store's file."""
_NO_STORE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""SQLite's codes for a file that is damaged or has none of our tables; others, such as for one that is busy,
say nothing about it."""
_NOT_READ_ONLY = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
_MOVED = "moved-to-postgresql"


class RestoreRefused(Trouble):
    """A store cannot be put there; the message says why and what to do."""


def replace(new: Path, file: Path, now: datetime) -> Path | None:
    """Make a finished store the content of SQLite's file; gives where the old one is kept, if there was one.

    `new` is a file that `beside(file)` gave.
    """
    if not file.exists() or file.stat().st_size == 0:
        _clear_companions(file, None)
        put(new, file)
        return None
    old = _revision_of(file)
    if old is None:
        aside = kept(file.parent, "damaged", now)
        aside.hardlink_to(file)
        _clear_companions(file, aside)
        to_disk(aside.parent)
        put(new, file)
        return aside
    aside = kept(file.parent, old, now)
    try:
        with beside(aside) as partial:
            _copy(file, partial, mode="delete")
            put(partial, aside)
        _copy(new, file, mode="wal")
    except sqlite3.Error as error:
        raise RestoreRefused(f"{file} could not be replaced: {error}. It is as it was.") from error
    return aside


def set_aside(file: Path, now: datetime) -> Path:
    """Move SQLite's file to the backups, with everything in it and nothing beside it."""
    try:
        with closing(sqlite3.connect(file, isolation_level=None, timeout=_PATIENCE)) as connection:
            connection.execute("pragma journal_mode=delete")
    except sqlite3.Error as error:
        raise RestoreRefused(
            f"Another program uses {file}: {error}. End it, and do the same again."
        ) from error
    aside = kept(file.parent, _revision_of(file) or "unknown", now)
    file.rename(aside)
    to_disk(aside.parent)
    to_disk(file.parent)
    return aside


def fill(
    target: Store,
    source: Connection,
    tables: MetaData,
    own: Collection[str],
) -> None:
    """Copy a store into a PostgreSQL database that has its tables and nothing in them, and verify it.

    `own`: tables in which a new store has rows by itself. One that is filled with the very same is left as
    it is, so that what was interrupted can be done again.
    """
    with target.migrating() as connection:
        names = ", ".join(table.name for table in tables.sorted_tables)
        connection.execute(text(f"lock table {names} in exclusive mode"))
        if occupied(connection, tables, own):
            try:
                copying.compare(source, connection, tables)
            except copying.NotCopied:
                demand_empty(connection, tables, own)
            return
        for table in reversed(tables.sorted_tables):
            connection.execute(delete(table))
        copying.copy(source, connection, tables)
        copying.compare(source, connection, tables)


def note_move(data: Path, told: str) -> None:
    """Write into a data folder that its store is elsewhere now: no server may begin a new one there."""
    with beside(data / _MOVED) as partial:
        partial.write_text(told + "\n", encoding="utf-8")
        put(partial, data / _MOVED)


def demand_not_moved(data: Path) -> None:
    """Refuse a folder whose store is in PostgreSQL now. Raises `RestoreRefused`."""
    with contextlib.suppress(FileNotFoundError):
        told = (data / _MOVED).read_text(encoding="utf-8").strip()
        raise RestoreRefused(
            f"{told} Set VECTORDASH_DATABASE to it. To keep the store in a file again: `vdserver backup "
            "FILE` with that setting, then `vdserver restore FILE` without it."
        )


def forget_move(data: Path) -> None:
    """The store is in this folder again."""
    (data / _MOVED).unlink(missing_ok=True)


def occupied(connection: Connection, tables: MetaData, own: Collection[str]) -> dict[str, int]:
    """Which tables have rows, and how many, beyond what a new store has by itself?"""
    found = copying.counts(connection, tables)
    return {name: rows for name, rows in found.items() if rows and name not in own}


def demand_empty(connection: Connection, tables: MetaData, own: Collection[str]) -> None:
    """Refuse a database that somebody uses. Raises `RestoreRefused`."""
    if there := occupied(connection, tables, own):
        told = ", ".join(f"{rows} {name}" for name, rows in there.items())
        name = connection.engine.url.database
        raise RestoreRefused(
            f"The database {name} is not empty ({told}): nothing was changed. Make a new one "
            "(`createdb NAME`), and name it in VECTORDASH_DATABASE."
        )


def _revision_of(file: Path) -> str | None:
    """Tell a store's revision; None: it is no store, or not whole."""
    # Read-only, so that what is past mending stays as it is; unless a killed writer left changes to be
    # taken back.
    for how in ("ro", "rw"):
        try:
            where = f"file:{quote(str(file.absolute()))}?mode={how}"
            with closing(sqlite3.connect(where, uri=True, timeout=_PATIENCE)) as connection:
                if connection.execute("pragma quick_check(1)").fetchone() != ("ok",):
                    return None
                found = connection.execute("select version_num from alembic_version").fetchone()
                return None if found is None else str(found[0])
        except sqlite3.DatabaseError as error:
            code = error.sqlite_errorcode & 0xFF
            if code in _NO_STORE:
                return None
            if how == "rw" or code not in _NOT_READ_ONLY:
                raise RestoreRefused(f"{file} cannot be read: {error}. Nothing was changed.") from error
    return None


def _copy(source: Path, target: Path, *, mode: str) -> None:
    """Write one file's content into another in one transaction; whoever has it open sees the one or other."""
    last = [0, time.monotonic()]

    def progress(_status: int, left: int, _all: int) -> None:
        if left != last[0]:
            last[:] = left, time.monotonic()
        elif time.monotonic() - last[1] > _PATIENCE:
            raise RestoreRefused(f"Another program holds {target}. End it, and do the same again.")

    with (
        closing(sqlite3.connect(source, isolation_level=None)) as read,
        closing(sqlite3.connect(target, isolation_level=None)) as write,
    ):
        write.execute("pragma synchronous=full")
        read.backup(write, pages=_PAGES, progress=progress)
        with contextlib.suppress(sqlite3.OperationalError):  # it is done; whoever opens it next tidies up
            write.execute(f"pragma journal_mode={mode}")
            write.execute("pragma wal_checkpoint(truncate)")


def _clear_companions(file: Path, aside: Path | None) -> None:
    """Leave nothing beside a file that another one is to replace: its changes would go into that one."""
    for end in ("-wal", "-journal"):
        companion = file.with_name(f"{file.name}{end}")
        if companion.exists() and aside is not None:
            companion.rename(aside.with_name(f"{aside.name}{end}"))
        companion.unlink(missing_ok=True)
    file.with_name(f"{file.name}-shm").unlink(missing_ok=True)
