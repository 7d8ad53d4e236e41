"""Backups: a whole store as one SQLite file, whichever database it is kept in.

The file is a store of its revision, with one table more, `backup`, that says what it is. It is written beside
its place and named when it is whole and on disk, so what bears the name is never half a backup. Making one
keeps nobody waiting: it reads one state of the store, by SQLite's own backup or in one snapshot of
PostgreSQL. Sealed secrets stay sealed in it; the key goes in only when the caller hands it over.
`restoring.py` goes the way back.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import MetaData

from vectordash import __version__
from vectordash.server.db import copying
from vectordash.server.db.migrate import SchemaError, head, revision, upgrade
from vectordash.server.db.session import Store, of_file
from vectordash.server.trouble import Trouble
from vectordash.server.vault import VaultError, from_text
from vectordash.wire.errors import Unavailable

_LABEL = """create table backup (
    made_at text not null, program text not null, revision text not null, key_id text, keys text
)"""
_PAGES = 4096
"""Pages of SQLite that are copied before Ctrl-C is heard again."""
_COMPANIONS = ("-journal", "-wal", "-shm")
_MAGIC = b"SQLite format 3\0"
_KEY_FACT = "encryption key"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class BackupRefused(Trouble):
    """A backup cannot be written, or is none; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup says of itself."""

    file: Path
    made_at: str | None
    """UTC; None: it is a store's own file, as it was set aside or copied by hand."""
    program: str
    revision: str
    key_id: str | None
    """Of the encryption key; None: nothing was ever sealed."""
    keys: str | None
    """The encryption keys themselves, if they were to be in it."""
    instances: int
    users: int

    @property
    def made(self) -> str:
        """Say when it was made, and by what."""
        if self.made_at is None:
            return "a store's own file"
        return f"made {self.made_at.replace('T', ' ').rstrip('Z')} (UTC) by Vectordash {self.program}"


def write(store: Store, file: Path, now: datetime, tables: MetaData, keys: str | None = None) -> Backup:
    """Make a backup while the store is in use; it is whole and on disk when this returns.

    Raises `BackupRefused`, and `Unavailable` if the store cannot be read. Nothing is left of one that failed.
    """
    try:
        with beside(file) as partial:
            if store.shared:
                _from_postgres(store, partial, tables)
            else:
                _from_sqlite(store, partial)
            _label(partial, now, keys)
            made = replace(look_into(partial, "The store"), file=file)
            put(partial, file)
    except (OSError, sqlite3.Error) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise BackupRefused(f"The backup cannot be written to {file}: {why}.") from error
    return made


def look_into(file: Path, named: str = "") -> Backup:
    """Check that a file is a backup, whole, and not newer than this program, and tell what it is.

    Raises `BackupRefused` and `SchemaError`; `named`: what to call it in them.
    """
    name = named or str(file)
    if file.is_dir():
        raise BackupRefused(f"{name} is a folder, not a backup.")
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise BackupRefused(f"{name} is no backup: `vdserver backup` makes one.")
    try:
        with closing(_reading(file)) as connection:
            wrong = [row[0] for row in connection.execute("pragma integrity_check(1)")]
            if wrong != ["ok"]:
                raise BackupRefused(f"{name} is damaged: {wrong[0]}.")
            return _described(connection, file, name)
    except sqlite3.Error as error:
        raise BackupRefused(f"{name} is damaged: {error}.") from error


def unpack(backup: Backup, file: Path) -> None:
    """Write the store that is in a backup into an empty file. Raises `BackupRefused`."""
    try:
        with closing(_reading(backup.file)) as source, closing(_writing(file)) as target:
            source.backup(target, pages=_PAGES, progress=_hear)
            target.execute("pragma journal_mode=delete")
            target.execute("drop table if exists backup")
    except sqlite3.Error as error:
        raise BackupRefused(f"{backup.file} cannot be unpacked into {file}: {error}.") from error


# --- files that are there whole, or not at all -------------------------------------------------------------


@contextmanager
def beside(file: Path) -> Iterator[Path]:
    """Give an empty file FILE.partial, 0600, that is gone at the end unless it was `put` in its place.

    One that a killed process left is written anew; one that somebody is writing is refused.
    """
    partial = file.with_name(f"{file.name}.partial")
    # Open to the end: to close any descriptor of a file would drop SQLite's locks on it.
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BackupRefused(f"Another process is just writing {file}.") from error
        try:
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, 0)
            _forget_companions(partial)
            yield partial
        finally:
            if _is_same(descriptor, partial):
                _forget_companions(partial)
                partial.unlink()
    finally:
        os.close(descriptor)


def put(partial: Path, file: Path) -> None:
    """Give a finished file its name, on disk, in one step."""
    to_disk(partial)
    partial.replace(file)
    to_disk(file.parent)


def to_disk(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def kept(data: Path, revision_there: str, now: datetime) -> Path:
    """Name a file in the data folder's `backups` for a store that makes room; made, 0700, if need be."""
    folder = data / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"store-{revision_there}-{now:%Y%m%dT%H%M%SZ}"
    numbers = (f"-{number}" for number in range(2, 1000))
    return next(file for end in ("", *numbers) if not os.path.lexists(file := folder / f"{name}{end}.db"))


def _forget_companions(file: Path) -> None:
    for end in _COMPANIONS:
        file.with_name(f"{file.name}{end}").unlink(missing_ok=True)


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether the name still stands for the open file, so that nobody else's is removed."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


# --- writing one -------------------------------------------------------------------------------------------


def _from_sqlite(store: Store, partial: Path) -> None:
    with store.snapshot() as connection:
        revision(connection)  # from here on the connection sees one state, so the copy never begins again
        with closing(_writing(partial)) as target:
            source: Any = connection.connection.driver_connection
            source.backup(target, pages=_PAGES, progress=_hear)


def _from_postgres(store: Store, partial: Path, tables: MetaData) -> None:
    made = of_file(partial)
    try:
        with store.snapshot() as source:
            if (found := revision(source)) != head():
                raise SchemaError(
                    f"The store is of revision {found}, this program's is {head()}. Make the backup with the "
                    "program that the store was used with."
                )
            upgrade(made, tables)
            with made.migrating() as target:
                copying.copy(source, target, tables)
                copying.compare(source, target, tables)
    except Unavailable as error:
        # Which of the two was it? PostgreSQL's outages are worded there, and name no file's fault.
        if isinstance(getattr(error.__cause__, "orig", None), sqlite3.Error):
            raise BackupRefused(
                f"The backup cannot be written to {partial}: {error.values['why']}."
            ) from error
        raise
    finally:
        made.close()


def _label(partial: Path, now: datetime, keys: str | None) -> None:
    """Write into the file what it is, and leave it as one that needs no other file beside it."""
    with closing(_writing(partial)) as connection:
        connection.execute("pragma journal_mode=delete")
        about = _described(connection, partial, "The store")
        if keys is not None and about.key_id is not None and not from_text(keys).holds(about.key_id):
            raise VaultError(
                f"The store's secrets are sealed with the key {about.key_id}; the key that is here is "
                f"{from_text(keys).current}. Nothing was written."
            )
        connection.execute("begin")
        connection.execute("drop table if exists backup")
        connection.execute(_LABEL)
        values = (now.strftime(_TIME), __version__, about.revision, about.key_id, keys)
        connection.execute("insert into backup values (?, ?, ?, ?, ?)", values)
        connection.execute("commit")


def _described(connection: sqlite3.Connection, file: Path, name: str) -> Backup:
    """Tell what a file is; any table that is missing means that it is none of ours."""
    names = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    if not {"alembic_version", "facts", "instances", "users"} <= names:
        raise BackupRefused(f"{name} is no backup: `vdserver backup` makes one.")

    def one(question: str, *values: object) -> Any:
        row = connection.execute(question, values).fetchone()
        return None if row is None else row[0]

    found = str(one("select version_num from alembic_version"))
    if found > head():
        raise SchemaError(
            f"{name} is of revision {found}, newer than this program's {head()}. Use the newer program."
        )
    made_at, program, keys = None, "", None
    if "backup" in names:
        made_at, program, keys = connection.execute("select made_at, program, keys from backup").fetchone()
    return Backup(
        file,
        made_at,
        program,
        found,
        one("select value from facts where name = ?", _KEY_FACT),
        keys,
        instances=one("select count(*) from instances"),
        users=one("select count(*) from users"),
    )


def _reading(file: Path) -> sqlite3.Connection:
    """Open a file without touching it or what is beside it, unless changes wait there."""
    wal = file.with_name(f"{file.name}-wal")
    waiting = wal.exists() and wal.stat().st_size > 0
    how = "mode=ro" if waiting else "mode=ro&immutable=1"
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?{how}", uri=True, isolation_level=None)


def _writing(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None)
    # It is written anew if anything happens, and waited for at the end.
    connection.execute("pragma synchronous=off")
    return connection


def _hear(_status: int, _left: int, _all: int) -> None:
    """Let Python hear signals between two pieces of a copy."""
