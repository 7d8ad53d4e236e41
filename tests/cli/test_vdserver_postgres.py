"""The operator's commands on a store in PostgreSQL: every statement of theirs runs there too."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud import HandClock, open_cloud
from databases import Database, Postgres
from operating import Operator, _have_a_history
from vectordash.server.db.migrate import head

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[tuple[Database, Path]]:
    """A data folder whose store is in PostgreSQL, where things have happened; never changed."""
    database, data = Database("postgresql", postgres), tmp_path_factory.mktemp("past") / "data"

    async def live() -> None:
        made = await open_cloud(data, database=database)
        await _have_a_history(made)
        await made.plane.presence.leave()
        await made.plane.close()

    asyncio.run(live())
    yield database, data
    database.forget()


@pytest.fixture
def there(
    past: tuple[Database, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Operator:
    """An operator of that cloud; it is 14:00."""
    database, made = past
    data = made.with_name("copy")
    database.copy(made, data)
    monkeypatch.setenv("VECTORDASH_DATABASE", database.settings(data).database)
    clock = HandClock()
    clock.move(hours=2)
    return Operator(data, capsys, clock)


def test_what_there_is_can_be_listed(there: Operator) -> None:
    assert [row[1] for row in there.do("instance", "list").rows] == ["steady"]
    assert len(there.do("gpu", "list").rows) == 3
    assert "ada@example.org" in there.do("user", "list").out
    assert "test" in there.do("token", "list").out


def test_a_price_is_changed_and_a_card_withheld(there: Operator) -> None:
    there.do("gpu", "price", "3", "0.85")
    there.do("gpu", "unlist", "3")

    (row,) = [row for row in there.do("gpu", "list").rows if row[0] == "3"]
    assert "0.85" in " ".join(row)


def test_somebody_new_gets_a_token_that_can_be_revoked(there: Operator) -> None:
    there.do("user", "add", "eve@example.org")
    there.do("token", "new", "eve@example.org")
    (token,) = [one for one in there.do("token", "list", "--json").json if one["email"] == "eve@example.org"]

    there.do("token", "revoke", str(token["id"]))
    there.do("user", "limits", "eve@example.org")


def test_an_instance_is_ended(there: Operator) -> None:
    there.do("instance", "end", "steady", "--force")

    assert there.do("instance", "list").rows == []


def test_somebody_known_is_refused_again(there: Operator) -> None:
    assert "ada@example.org" in there.refused("user", "add", "ada@example.org")


def test_the_history_of_an_instance_is_told(there: Operator) -> None:
    (steady,) = there.do("instance", "list", "--json").json

    assert "steady" in there.do("instance", "show", steady["key"]).out


def test_the_doctor_knows_the_store(there: Operator) -> None:
    ran = there.run("doctor")

    assert ran.code in {0, 1}
    assert head() in ran.out or "PostgreSQL" in ran.out


def test_an_up_to_date_store_is_migrated_without_harm(there: Operator) -> None:
    assert head() in there.do("migrate").err

    assert [row[1] for row in there.do("instance", "list").rows] == ["steady"]


def test_a_store_without_tables_names_the_command_that_makes_them(
    there: Operator, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.new()
    monkeypatch.setenv("VECTORDASH_DATABASE", postgres.url(name))

    assert "vdserver migrate" in there.refused("gpu", "list")
    there.do("migrate")
    there.do("gpu", "list")
    postgres.drop(name)


def test_a_database_that_is_not_there_is_told_in_one_line_without_the_password(
    there: Operator, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORDASH_DATABASE", postgres.url("nowhere"))

    assert "secret" not in there.refused("gpu", "list")
