"""Backups of a store on either database, and what puts them back: whole, consistent, and never in halves."""

import os
import resource
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import select

from cloud import NOON
from databases import Database, Postgres
from folders import REVISIONS, add_pair, emails, fill_up, notes, reopen, unpack
from vectordash.server import app
from vectordash.server.db import backup, copying, restoring
from vectordash.server.db.backup import BackupRefused
from vectordash.server.db.migrate import SchemaError, head, revision
from vectordash.server.db.session import Store
from vectordash.server.instances.tables import instances
from vectordash.server.settings import Settings
from vectordash.server.trouble import Trouble
from vectordash.server.vault import VaultError, from_file


@pytest.fixture
def store(tmp_path: Path, database: Database) -> Iterator[Store]:
    """A store with its tables, on each database."""
    made = app.open_store(database.settings(tmp_path / "data"))
    yield made
    made.close()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The data folder that revision 0001 left."""
    return unpack("0001", tmp_path)


def open_file(file: Path) -> Store:
    return Store(f"sqlite:///{quote(str(file))}", readers=1)


def rows(file: Path, question: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(question).fetchall()


# Making one


def test_a_backup_holds_every_row_and_says_what_it_is(store: Store, tmp_path: Path) -> None:
    store.change(add_pair, "one")
    file = tmp_path / "a b?.db"

    made = backup.write(store, file, NOON, app.TABLES)

    assert backup.look_into(file) == made
    assert (made.made_at, made.revision, made.users, made.keys) == ("2026-03-01T12:00:00Z", head(), 1, None)
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b?.db", "data"]
    copied = open_file(file)
    with store.snapshot() as one, copied.snapshot() as other:
        copying.compare(one, other, app.TABLES)
    copied.close()


def test_a_backup_is_one_file_that_needs_no_other_beside_it(store: Store, tmp_path: Path) -> None:
    file = backup.write(store, tmp_path / "b.db", NOON, app.TABLES).file

    assert rows(file, "pragma journal_mode") == [("delete",)]


def test_a_backup_during_a_storm_of_writes_is_of_one_moment(store: Store, tmp_path: Path) -> None:
    """What is written in one transaction is in it together, and nobody who writes waits for it."""
    store.change(fill_up, 3000, 1000)
    stop, failed = threading.Event(), list[BaseException]()

    def storm() -> None:
        try:
            number = 0
            while not stop.is_set():
                store.change(add_pair, f"a{number}")
                number += 1
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    writer = threading.Thread(target=storm)
    writer.start()
    try:
        made = [backup.write(store, tmp_path / f"{number}.db", NOON, app.TABLES) for number in range(3)]
    finally:
        stop.set()
        writer.join()

    assert not failed
    for one in made:
        lines = rows(one.file, "select count(*) from audit where what = 'pair'")
        assert lines == [(one.users,)]
    assert made[0].users < made[-1].users <= len(store.ask(emails))


def test_a_backup_that_finds_no_room_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    """A limit of a file's size is as good as a full disk."""
    store.change(fill_up, 3000, 1000)
    folder = tmp_path / "there"
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(BackupRefused, match="cannot be written to") as told:
            backup.write(store, folder / "b.db", NOON, app.TABLES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)

    assert "\n" not in str(told.value)
    assert list(folder.iterdir()) == []


def test_what_a_killed_backup_left_is_written_anew(store: Store, tmp_path: Path) -> None:
    (tmp_path / "b.db.partial").write_bytes(b"half" * 5000)
    (tmp_path / "b.db.partial-journal").write_bytes(b"half" * 5000)

    backup.write(store, tmp_path / "b.db", NOON, app.TABLES)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.db", "data"]


def test_two_backups_into_the_same_file_are_told_apart(store: Store, tmp_path: Path) -> None:
    with backup.beside(tmp_path / "b.db") as partial:
        with pytest.raises(BackupRefused, match="just writing"):
            backup.write(store, tmp_path / "b.db", NOON, app.TABLES)

        assert partial.exists()


def test_a_wrong_key_does_not_go_in(old: Path, tmp_path: Path) -> None:
    store = app.open_store(Settings(data=old))
    wrong = "A" * 43 + "="

    with pytest.raises(VaultError, match="Nothing was written"):
        backup.write(store, tmp_path / "b.db", NOON, app.TABLES, wrong)

    store.close()
    assert not list(tmp_path.glob("b.db*"))


# Looking into one


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:8192] + os.urandom(len(data) - 8192),
        lambda data: data[:100],
    ],
    ids=["cut", "overwritten", "only its head"],
)
def test_a_damaged_backup_is_refused(store: Store, tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    file = backup.write(store, tmp_path / "b.db", NOON, app.TABLES).file
    file.write_bytes(spoil(file.read_bytes()))

    with pytest.raises(BackupRefused, match=r"is damaged|is no backup"):
        backup.look_into(file)


@pytest.mark.parametrize("content", [b"", b"-- PostgreSQL database dump"], ids=["empty", "text"])
def test_what_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.db").write_bytes(content)

    with pytest.raises(BackupRefused, match="is no backup"):
        backup.look_into(tmp_path / "b.db")


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "b.db")) as connection:
        connection.execute("create table users (id integer)")

    with pytest.raises(BackupRefused, match="is no backup"):
        backup.look_into(tmp_path / "b.db")


def test_a_newer_backup_is_refused(store: Store, tmp_path: Path) -> None:
    file = backup.write(store, tmp_path / "b.db", NOON, app.TABLES).file
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("update alembic_version set version_num = '9999'")

    with pytest.raises(SchemaError, match="newer than this program's"):
        backup.look_into(file)


# Putting one back


def test_a_store_that_is_in_use_by_a_command_is_replaced_for_it_too(old: Path, tmp_path: Path) -> None:
    store = app.open_store(Settings(data=old))
    file = backup.write(store, tmp_path / "b.db", NOON, app.TABLES).file
    store.change(add_pair, "late")

    with backup.beside(old / "store.db") as made:
        backup.unpack(backup.look_into(file), made)
        aside = restoring.replace(made, old / "store.db", NOON)

    assert "late@example.org" not in store.ask(emails)
    store.close()
    assert aside is not None
    assert ("late@example.org",) in rows(aside, "select email from users")


@pytest.mark.parametrize("spoilt", [b"no store" * 999, b"SQLite format 3\0" + b"x" * 9999, b""])
def test_a_store_that_is_past_mending_is_set_aside_and_replaced(
    old: Path, tmp_path: Path, spoilt: bytes
) -> None:
    file = tmp_path / "b.db"
    file.write_bytes((old / "store.db").read_bytes())
    (old / "store.db").write_bytes(spoilt)
    (old / "store.db-wal").write_bytes(b"of the old one")

    with backup.beside(old / "store.db") as made:
        backup.unpack(backup.look_into(file), made)
        aside = restoring.replace(made, old / "store.db", NOON)

    assert len(rows(old / "store.db", "select email from users")) == 2
    assert not list(old.glob("store.db?*"))
    assert (aside is None) == (not spoilt)
    if aside is not None:
        assert aside.read_bytes() == spoilt
        assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"of the old one"


@pytest.mark.needs("postgres")
def test_the_way_to_postgresql_and_back_loses_nothing(tmp_path: Path, postgres: Postgres) -> None:
    """SQLite → file → PostgreSQL → file → SQLite, equal row for row."""
    data = unpack("0002", tmp_path)
    first = app.open_store(Settings(data=data))
    one = backup.write(first, tmp_path / "one.db", NOON, app.TABLES).file
    name = postgres.new(postgres.template)
    shared = Store(Settings(database=postgres.url(name)).store_url)
    unpacked = open_file(one)
    with unpacked.snapshot() as source:
        restoring.fill(shared, source, app.TABLES, app.FRESH)
    two = backup.write(shared, tmp_path / "two.db", NOON, app.TABLES).file
    with backup.beside(tmp_path / "last.db") as made:
        backup.unpack(backup.look_into(two), made)
        restoring.replace(made, tmp_path / "last.db", NOON)
    last = open_file(tmp_path / "last.db")

    with first.snapshot() as source, last.snapshot() as target:
        copying.compare(source, target, app.TABLES)
        assert len(source.execute(select(instances)).all()) == 5
    schema = "select type, name, tbl_name from sqlite_master where name <> 'backup' order by 1, 2"
    assert rows(tmp_path / "last.db", schema) == rows(data / "store.db", schema)
    for store in (first, shared, unpacked, last):
        store.close()
    postgres.drop(name)


@pytest.mark.needs("postgres")
def test_postgresql_is_filled_only_where_nothing_is(tmp_path: Path, postgres: Postgres) -> None:
    source = app.open_store(Settings(data=unpack("0002", tmp_path)))
    name = postgres.new(postgres.template)
    target = Store(Settings(database=postgres.url(name)).store_url)
    target.change(add_pair, "zoe")

    with source.snapshot() as one, pytest.raises(Trouble, match=r"not empty \(1 audit, 1 users\)"):
        restoring.fill(target, one, app.TABLES, app.FRESH)

    assert target.ask(emails) == ["zoe@example.org"]
    source.close()
    target.close()
    postgres.drop(name)


# Upgrades


@pytest.mark.asyncio
@pytest.mark.parametrize("revision_then", REVISIONS)
async def test_a_folder_of_then_is_opened_with_all_that_is_in_it(tmp_path: Path, revision_then: str) -> None:
    data = unpack(revision_then, tmp_path)
    before = rows(data / "store.db", "select * from users order by id")
    settings = Settings(data=data, key_stock=0)

    store = app.open_store(settings)

    assert store.ask(revision) == head()
    assert rows(data / "store.db", "select * from users order by id") == before
    columns = select(instances.c.public_key, instances.c.pem)
    sealed = store.ask(lambda connection: connection.execute(columns).all())
    keys = app.open_vault(settings, store)
    opened = [keys.open(pem, public) for public, pem in sealed if pem is not None]
    assert len(opened) == 3, "what has ended is erased"
    assert all("PRIVATE KEY" in pem for pem in opened)
    cloud = await reopen(settings, store, notes(data)["token"])
    shown = (await cloud.call("GET", "/api/instances")).json["instances"]
    assert {one["name"]: one["status"] for one in shown} == {
        "active": "active",
        "renamed": "active",
        "pending": "pending",
    }
    again = {"name": "active", "gpu": "1080 ti"}
    answer = await cloud.call("POST", "/api/instances", again, headers={"idempotency-key": "one"})
    assert answer.json["instance"]["key"] == next(one["key"] for one in shown if one["name"] == "active")
    new = await cloud.rent("new")
    await cloud.settle()
    assert (await cloud.show(new["key"]))["status"] == "active"
    await cloud.plane.close()


def test_an_older_store_is_kept_before_it_is_upgraded(old: Path) -> None:
    was = rows(old / "store.db", "select * from instances order by key")

    app.open_store(Settings(data=old)).close()
    app.open_store(Settings(data=old)).close()

    (kept,) = (old / "backups").iterdir()
    assert kept.name.startswith("store-0001-")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert (old / "backups").stat().st_mode & 0o777 == 0o700
    assert rows(kept, "select * from instances order by key") == was
    assert backup.look_into(kept).revision == "0001"


def test_a_new_store_needs_no_backup(tmp_path: Path) -> None:
    app.open_store(Settings(data=tmp_path / "data")).close()

    assert not (tmp_path / "data" / "backups").exists()


def test_a_store_that_cannot_be_kept_is_not_upgraded(old: Path) -> None:
    (old / "backups").write_text("in the way")

    with pytest.raises(SchemaError, match="was not upgraded, for it could not be kept"):
        app.open_store(Settings(data=old))

    assert rows(old / "store.db", "select version_num from alembic_version") == [("0001",)]


def test_an_emptied_store_is_not_taken_for_a_new_one(old: Path) -> None:
    (old / "store.db").write_bytes(b"")

    with pytest.raises(Trouble, match=r"something has emptied it.*vdserver restore FILE"):
        app.open_store(Settings(data=old))

    assert (old / "store.db").stat().st_size == 0
    assert from_file(old / "encryption.key")


def test_a_key_that_was_put_there_first_begins_a_new_cloud(old: Path) -> None:
    (old / "store.db").unlink()

    app.open_store(Settings(data=old)).close()
