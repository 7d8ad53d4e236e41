"""`vdserver restore`: all or nothing, with the right key, and nothing offered that may be somebody's."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection

from cloud import open_cloud
from databases import Postgres
from folders import REVISIONS, emails, fill_up, notes, reopen, unpack
from operating import Operator
from vectordash.server import app
from vectordash.server.cli.folder import locked
from vectordash.server.db import copying
from vectordash.server.db.presence import Process, all_processes, enter
from vectordash.server.db.session import Store
from vectordash.server.machines.store import all_gpus
from vectordash.server.settings import Settings
from vectordash.server.vault import from_file

ADA = "ada@example.org"


@pytest.fixture
def file(busy: Operator, tmp_path: Path) -> Path:
    """A backup of the busy cloud, in which an account is made afterwards."""
    made = tmp_path / "b.db"
    busy.do("backup", str(made))
    busy.do("user", "add", "late@example.org")
    return made


@pytest.fixture
def url(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty PostgreSQL database, which the settings name."""
    name = postgres.new()
    monkeypatch.setenv("VECTORDASH_DATABASE", postgres.url(name))
    yield postgres.url(name)
    postgres.drop(name)


@contextmanager
def opened(url: str) -> Iterator[Store]:
    store = Store(Settings(database=url).store_url)
    yield store
    store.close()


def users(data: Path) -> list[str]:
    store = app.open_store(Settings(data=data))
    try:
        return store.ask(emails)
    finally:
        store.close()


def spoil(data: Path) -> str:
    """Put another key in the place of the right one; gives the id of the right one."""
    right = from_file(data / "encryption.key").current
    (data / "encryption.key").write_text("A" * 43 + "=")
    return right


# What it does


def test_it_puts_the_backup_there_and_keeps_what_stood_there(busy: Operator, file: Path) -> None:
    ran = busy.do("restore", str(file))

    assert users(busy.data) == [ADA]
    (aside,) = (busy.data / "backups").iterdir()
    assert str(aside) in ran.err
    assert "made 2026-03-01 14:00:00 (UTC)" in ran.err
    assert "3 instances, 1 accounts" in ran.err
    assert "vdserver instance orphans" in ran.err
    assert ran.out == ""
    busy.do("restore", str(aside))
    assert users(busy.data) == [ADA, "late@example.org"]
    assert not list(busy.data.glob("*.partial*"))


def test_free_gpus_wait_for_a_look_and_rented_ones_stay_rented(busy: Operator, file: Path) -> None:
    busy.do("restore", str(file))

    states = {row[0]: (row[2], row[6]) for row in busy.do("gpu", "list").rows}
    assert states["1"][0] == "rented"
    assert states["2"] == ("suspect", "the store was restored: waiting for a look at the cluster")


def test_processes_and_with_them_their_leases_are_void(busy: Operator, file: Path) -> None:
    with busy.store() as store:
        assert store.ask(all_processes)

    busy.do("restore", str(file))

    with busy.store() as store:
        assert store.ask(all_processes) == []


@pytest.mark.asyncio
async def test_nothing_is_offered_until_the_first_pass_has_looked(busy: Operator, tmp_path: Path) -> None:
    """And what an instance unknown to the backup holds is not offered after it either."""
    cloud = await open_cloud(tmp_path / "cloud")
    busy.data = tmp_path / "cloud"
    busy.do("backup", str(tmp_path / "b.db"))
    await cloud.rent("late")
    await cloud.settle()
    held = next(iter(cloud.driver.there.values())).spec.gpus
    await cloud.plane.close()

    busy.do("restore", str(tmp_path / "b.db"))

    settings = Settings(data=busy.data, key_stock=0)
    store = app.open_store(settings)
    again = await reopen(settings, store, cloud.token)
    again.driver.inventory, again.driver.there = cloud.driver.inventory, cloud.driver.there
    refused = await again.call("POST", "/api/instances", {"name": "x", "gpu": "1080 ti"})
    await again.look()
    suspect = [gpu.id for gpu in await store.read(all_gpus) if gpu.suspect_why]
    new = await again.rent("new")
    await again.settle()
    shown = await again.show(new["key"])
    running = [one.spec.gpus for one in again.driver.there.values()]
    await again.plane.close()

    assert refused.status == 504
    assert len(suspect) == 1
    assert shown["status"] == "active"
    assert held in running
    assert len(running) == len(set(running)) == 2


@pytest.mark.parametrize("revision", REVISIONS)
def test_an_older_backup_is_upgraded_on_the_way(busy: Operator, tmp_path: Path, revision: str) -> None:
    old, busy.data = unpack(revision, tmp_path / "old"), tmp_path / "new"
    there = Operator(old, busy.capture, busy.clock)
    there.do("backup", "--with-key", str(tmp_path / "b.db"))

    said = busy.do("restore", str(tmp_path / "b.db")).err

    assert ("upgraded from revision 0001" in said) == (revision == "0001")
    assert len(busy.do("instance", "list", "--all").rows) == 5
    assert users(busy.data) == ["ada@example.org", "grace@example.org"]
    assert notes(old)["token"] not in said


# Keys


def test_the_key_of_the_backup_goes_into_an_empty_place(busy: Operator, tmp_path: Path) -> None:
    busy.do("backup", "--with-key", str(tmp_path / "b.db"))
    key = (busy.data / "encryption.key").read_text()
    busy.data = tmp_path / "new"

    said = busy.do("restore", str(tmp_path / "b.db")).err

    put = busy.data / "encryption.key"
    assert str(put) in said
    assert put.read_text() == key
    assert put.stat().st_mode & 0o777 == 0o600
    assert (busy.data / "store.db").stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(busy.data / "store.db")) as connection:
        tables = connection.execute("select name from sqlite_master where name = 'backup'").fetchall()
    assert tables == [], "the key does not stay in the store"


def test_without_the_key_nothing_is_changed_and_its_id_is_told(busy: Operator, file: Path) -> None:
    key = from_file(busy.data / "encryption.key").current
    (busy.data / "encryption.key").unlink()

    said = busy.refused("restore", str(file))

    assert f"needs the encryption key {key}" in said
    assert not (busy.data / "backups").exists()


def test_with_a_wrong_key_nothing_is_changed(busy: Operator, file: Path, tmp_path: Path) -> None:
    busy.do("backup", "--with-key", str(tmp_path / "k.db"))
    right = spoil(busy.data)

    for backup in (file, tmp_path / "k.db"):
        said = busy.refused("restore", str(backup))
        assert f"needs the encryption key {right}" in said
    assert (busy.data / "encryption.key").read_text() == "A" * 43 + "="


# What it refuses


def test_while_a_server_runs_nothing_is_changed(busy: Operator, file: Path) -> None:
    with locked(Settings(data=busy.data)):
        assert "already uses" in busy.refused("restore", str(file))

    assert "late@example.org" in users(busy.data)


def test_what_is_no_good_backup_changes_nothing(busy: Operator, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    (tmp_path / "cut.db").write_bytes(data[: len(data) // 3])
    (tmp_path / "text.db").write_text("select 1")
    newer = tmp_path / "newer.db"
    newer.write_bytes(data)
    with closing(sqlite3.connect(newer)) as connection, connection:
        connection.execute("update alembic_version set version_num = '9999'")

    for name, told in [
        ("cut.db", "is damaged"),
        ("text.db", "is no backup"),
        ("newer.db", "Use the newer program"),
        ("none.db", "There is no"),
        (".", "is a folder"),
        ("data/store.db", "is the store itself"),
    ]:
        assert told in busy.refused("restore", str(tmp_path / name))
    assert "late@example.org" in users(busy.data)
    assert not list(busy.data.glob("store.db.partial*"))


def test_a_restore_that_is_killed_leaves_the_old_or_the_new(busy: Operator, tmp_path: Path) -> None:
    """At many moments, on a store that takes a while; each time the store is whole and usable."""
    with busy.store() as store:
        store.change(fill_up, 15_000, 2_000)
    busy.do("backup", str(tmp_path / "b.db"))
    busy.do("user", "add", "late@example.org")
    seen = set()
    for wait in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7):
        process = busy.start("restore", str(tmp_path / "b.db"))
        while not (busy.data / "store.db.partial").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
        process.communicate()
        with closing(sqlite3.connect(busy.data / "store.db")) as connection:
            assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        found = users(busy.data)
        assert found in ([ADA], [ADA, "late@example.org"])
        seen.add(len(found))
        if found == [ADA]:
            busy.do("user", "add", "late@example.org")

    busy.do("restore", str(tmp_path / "b.db"))

    assert 2 in seen
    assert users(busy.data) == [ADA]
    assert not list(busy.data.glob("store.db?*"))


# PostgreSQL


@pytest.mark.needs("postgres")
def test_into_an_empty_postgresql(busy: Operator, url: str, tmp_path: Path) -> None:
    os.environ.pop("VECTORDASH_DATABASE")
    busy.do("backup", str(tmp_path / "b.db"))
    os.environ["VECTORDASH_DATABASE"] = url

    said = busy.do("restore", str(tmp_path / "b.db")).err

    assert "vdserver api" in said
    assert len(busy.do("instance", "list", "--all").rows) == 3
    assert [row[2] for row in busy.do("gpu", "list").rows].count("suspect") == 2
    assert "is not empty" in busy.refused("restore", str(tmp_path / "b.db"))


@pytest.mark.needs("postgres")
def test_a_living_process_of_postgresql_is_told(
    operator: Operator, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VECTORDASH_DATABASE")
    operator.do("backup", str(tmp_path / "b.db"))
    monkeypatch.setenv("VECTORDASH_DATABASE", url)
    operator.do("migrate")
    process = operator.start("restore", str(tmp_path / "b.db"), env=os.environ)

    def live(connection: Connection, number: int) -> None:
        now = operator.clock().replace(microsecond=number)
        connection.execute(app.TABLES.tables["processes"].delete())
        enter(connection, Process("x", "api", "there", 7, now, now))

    with opened(url) as store:
        number = 0
        while process.poll() is None:
            number += 1
            store.change(live, number)
            time.sleep(0.1)
    _, said = process.communicate()

    assert process.returncode == 1
    assert "These use the store: api on there (process 7)" in said
    assert "then: vdserver restore" in said


@pytest.mark.needs("postgres")
def test_a_killed_restore_leaves_postgresql_empty_or_full(
    busy: Operator, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VECTORDASH_DATABASE")
    with busy.store() as store:
        store.change(fill_up, 15_000, 1_000)
    busy.do("backup", str(tmp_path / "b.db"))
    monkeypatch.setenv("VECTORDASH_DATABASE", url)
    for wait in (0.2, 0.6, 1.2):
        process = busy.start("restore", str(tmp_path / "b.db"), env=os.environ)
        while not (busy.data / "store.db.partial").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with opened(url) as store:
            found = store.ask(copying.counts, app.TABLES)
            assert (found["users"], found["audit"] > 15_000) in {(0, False), (1, True)}
        if found["users"]:
            break
    else:
        busy.do("restore", str(tmp_path / "b.db"))

    with opened(url) as store:
        assert store.ask(emails) == [ADA]
