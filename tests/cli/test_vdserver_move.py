"""`vdserver move`: from the data folder's file to PostgreSQL, every row, once."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from databases import Postgres
from folders import REVISIONS, add_pair, emails, notes, reopen, unpack
from operating import Operator
from server import free_port
from vectordash.server import app
from vectordash.server.cli.folder import locked
from vectordash.server.db import copying
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture
def url(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty PostgreSQL database, which the settings name."""
    name = postgres.new()
    monkeypatch.setenv("VECTORDASH_DATABASE", postgres.url(name))
    yield postgres.url(name)
    postgres.drop(name)


def aside(data: Path) -> Path:
    """The file that was moved away, among what an upgrade kept."""
    return max((data / "backups").iterdir(), key=lambda path: path.stat().st_ctime_ns)


@pytest.mark.asyncio
@pytest.mark.parametrize("revision", REVISIONS)
async def test_all_that_was_in_the_file_is_in_the_database(
    operator: Operator, url: str, tmp_path: Path, revision: str
) -> None:
    operator.data = unpack(revision, tmp_path / "old")

    said = operator.do("move").err

    assert "5 instances, 2 accounts" in said
    assert "postgresql://127.0.0.1:" in said
    assert "secret" not in said
    assert not list(operator.data.glob("store.db*"))
    settings = Settings(data=operator.data, database=url, key_stock=0)
    store = app.open_store(settings)
    kept = Store(f"sqlite:///{aside(operator.data)}", readers=1)
    with kept.snapshot() as one, store.snapshot() as other:
        copying.compare(one, other, app.TABLES)
    kept.close()
    cloud = await reopen(settings, store, notes(operator.data)["token"])
    shown = await cloud.call("GET", "/api/instances/active")
    assert shown.json["instance"]["status"] == "active"
    new = await cloud.rent("new")
    await cloud.settle()
    assert (await cloud.show(new["key"]))["status"] == "active"
    await cloud.plane.close()


def test_what_was_moved_is_not_begun_anew_by_mistake(
    operator: Operator, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.do("move")
    monkeypatch.delenv("VECTORDASH_DATABASE")

    up = operator.start("up", "--port", str(free_port()))

    assert "was moved to postgresql://" in up.communicate()[1]
    assert up.returncode == 1
    assert not (operator.data / "store.db").exists()

    monkeypatch.setenv("VECTORDASH_DATABASE", url)
    operator.do("backup", str(tmp_path / "back.db"))
    monkeypatch.delenv("VECTORDASH_DATABASE")
    operator.do("restore", str(tmp_path / "back.db"))
    assert len(operator.do("gpu", "list").rows) == 3
    app.open_store(Settings(data=operator.data)).close()


def test_a_database_with_something_in_it_is_refused(operator: Operator, url: str) -> None:
    operator.do("migrate")
    store = Store(Settings(database=url).store_url)
    store.change(add_pair, "zoe")

    assert "is not empty (1 audit, 1 users): nothing was changed" in operator.refused("move")
    assert store.ask(emails) == ["zoe@example.org"]
    assert (operator.data / "store.db").exists()
    assert not (operator.data / "moved-to-postgresql").exists()
    store.close()


def test_a_move_that_was_cut_off_after_the_copy_is_finished_by_the_same_command(
    operator: Operator, url: str
) -> None:
    was = (operator.data / "store.db").read_bytes()
    operator.do("move")
    (operator.data / "store.db").write_bytes(was)

    operator.do("move")

    assert not (operator.data / "store.db").exists()


def test_what_a_command_writes_meanwhile_is_not_lost(operator: Operator, url: str) -> None:
    """It comes before the move, or is told that the store is gone; or the move gives up."""
    move = operator.start("move")
    without = {name: value for name, value in os.environ.items() if name != "VECTORDASH_DATABASE"}
    said = [operator.start("user", "add", f"u{number}@example.org", env=without) for number in range(6)]
    _, told = move.communicate()
    for process in said:
        process.communicate()
    added = sum(process.returncode == 0 for process in said)

    assert move.returncode == 0 or "the same again" in told
    where = Settings(database=url) if move.returncode == 0 else Settings(data=operator.data)
    store = Store(where.store_url)
    assert len(store.ask(emails)) == 1 + added
    store.close()


def test_without_a_database_it_says_how_to_name_one(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "VECTORDASH_DATABASE" in operator.refused("move")


def test_while_a_server_runs_nothing_is_moved(operator: Operator, url: str) -> None:
    with locked(Settings(data=operator.data)):
        assert "already uses" in operator.refused("move")


def test_an_unreachable_database_changes_nothing(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORDASH_DATABASE", "postgresql://nobody:secret@127.0.0.1:1/none")

    assert "cannot be reached" in operator.refused("move")
    with closing(sqlite3.connect(operator.data / "store.db")) as connection:
        assert connection.execute("select count(*) from users").fetchall() == [(1,)]
