"""`vdserver backup`: while it serves, refused where it would be a loss, and honest about the key."""

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from databases import Postgres
from folders import fill_up, unpack
from operating import Operator
from vectordash.server import app
from vectordash.server.cli.folder import locked
from vectordash.server.db import backup
from vectordash.server.settings import Settings
from vectordash.server.vault import from_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the backup is to go."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere" / "b.db"


def test_it_says_where_it_is_and_that_the_key_is_not_in_it(busy: Operator, file: Path) -> None:
    with locked(Settings(data=busy.data)), busy.store():
        ran = busy.do("backup", str(file))

    key = from_file(busy.data / "encryption.key").current
    assert ran.out == ""
    assert str(file) in ran.err
    assert "3 instances, 1 accounts" in ran.err
    assert f"The encryption key {key} is NOT in it" in ran.err
    assert str(busy.data / "encryption.key") in ran.err
    assert (busy.data / "encryption.key").read_text().strip().encode() not in file.read_bytes()
    assert [path.name for path in file.parent.iterdir()] == ["b.db"]


def test_with_key_it_says_that_the_key_is_in_it(busy: Operator, file: Path) -> None:
    ran = busy.do("backup", "--with-key", str(file))

    assert "IS in it" in ran.err
    assert backup.look_into(file).keys == (busy.data / "encryption.key").read_text().strip()


def test_with_key_and_no_key_there_nothing_is_written(operator: Operator, file: Path) -> None:
    (operator.data / "encryption.key").unlink()

    assert "There is no encryption key here" in operator.refused("backup", "--with-key", str(file))
    assert not list(file.parent.iterdir())


def test_a_file_that_is_there_is_replaced_only_by_force(operator: Operator, file: Path) -> None:
    file.write_text("precious")

    assert "--force" in operator.refused("backup", str(file))
    assert file.read_text() == "precious"

    operator.do("backup", "--force", str(file))
    assert backup.look_into(file).users == 1


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("elsewhere", "is a folder. Name a file in it"),
        ("nowhere/b.db", "mkdir -p"),
        ("data/store.db", "lies in the data folder"),
        ("data/backups/b.db", "There is no folder"),
        ("data/b.db", "lies in the data folder"),
        ("link.db", "lies in the data folder"),
        ("twin.db", "is a file of the cloud itself"),
        ("/dev/null", "is no file that could be replaced"),
    ],
)
def test_what_would_be_a_loss_is_refused(
    operator: Operator, file: Path, tmp_path: Path, where: str, told: str
) -> None:
    (tmp_path / "link.db").symlink_to(operator.data / "store.db")
    (tmp_path / "twin.db").hardlink_to(operator.data / "store.db")
    was = (operator.data / "store.db").read_bytes()

    assert told in operator.refused("backup", "--force", str(tmp_path / where))
    assert (operator.data / "store.db").read_bytes() == was


def test_an_unwritable_folder_is_told_in_one_line(operator: Operator) -> None:
    """Not even root makes a file there."""
    assert "The backup cannot be written to /proc/b.db" in operator.refused("backup", "/proc/b.db")


def test_without_a_cloud_nothing_is_made(operator: Operator, file: Path) -> None:
    operator.data = operator.data.parent / "nowhere"

    assert "There is no cloud in" in operator.refused("backup", str(file))
    assert not operator.data.exists()


def test_an_older_store_is_backed_up_as_it_is(operator: Operator, file: Path, tmp_path: Path) -> None:
    operator.data = unpack("0001", tmp_path / "old")

    operator.do("backup", str(file))

    assert backup.look_into(file).revision == "0001"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_backup_that_is_cut_off_leaves_no_half_of_one(
    operator: Operator, file: Path, number: signal.Signals
) -> None:
    """It is cut off as soon as it writes; what a kill -9 leaves is tidied by the next one."""
    with operator.store() as store:
        store.change(fill_up, 20_000, 2_000)
    for wait in (0.0, 0.01, 0.03):
        process = operator.start("backup", str(file))
        partial = file.with_name("b.db.partial")
        while not partial.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(process.pid, number)
        _, said = process.communicate()

        assert "Traceback" not in said
        if number == signal.SIGINT and process.returncode:
            assert process.returncode == 130
            assert not list(file.parent.iterdir())
        if file.exists():
            backup.look_into(file)
            file.unlink()
    operator.do("backup", str(file))

    assert [path.name for path in file.parent.iterdir()] == ["b.db"]
    with closing(sqlite3.connect(operator.data / "store.db")) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


@pytest.mark.needs("postgres")
def test_from_postgresql_it_is_the_same_file(
    operator: Operator, file: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.new(postgres.template)
    monkeypatch.setenv("VECTORDASH_DATABASE", postgres.url(name))
    app.open_vault(
        settings := Settings(data=operator.data, database=postgres.url(name)),
        store := app.open_store(settings),
    )
    store.close()
    operator.do("user", "add", "zoe@example.org")

    ran = operator.do("backup", "--with-key", str(file))

    assert "0 instances, 1 accounts" in ran.err
    assert backup.look_into(file).key_id == from_file(operator.data / "encryption.key").current
    postgres.drop(name)


@pytest.mark.needs("postgres")
def test_a_database_without_tables_is_no_backup(
    operator: Operator, file: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.new()
    monkeypatch.setenv("VECTORDASH_DATABASE", postgres.url(name))

    assert "vdserver migrate" in operator.refused("backup", str(file))
    assert not list(file.parent.iterdir())
    postgres.drop(name)
