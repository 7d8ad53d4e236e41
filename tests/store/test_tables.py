"""The tables: what the migrations make of them, and what they refuse to hold."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, Table, insert, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError

from cloud import NOON, open_cloud
from databases import Database
from vectordash.server import app
from vectordash.server.db import migrate
from vectordash.server.db.base import Instant, Money
from vectordash.server.db.migrate import SchemaError
from vectordash.server.db.session import Store
from vectordash.server.instances.tables import attempts, instances
from vectordash.server.machines.tables import clusters, gpus

# Migrations


@pytest.fixture
def empty(tmp_path: Path, database: Database) -> Iterator[Store]:
    """A store without tables."""
    made = Store(database.url(tmp_path))
    yield made
    made.close()


def test_the_migrations_make_the_tables_of_the_code(empty: Store) -> None:
    assert migrate.upgrade(empty, app.TABLES)

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, app.TABLES)

    assert empty.ask(differences) == []


def test_the_migrations_make_the_very_same_indexes_and_checks(
    empty: Store, tmp_path: Path, database: Database
) -> None:
    """Alembic compares neither a partial index's condition nor a check; the database's own texts do."""
    (tmp_path / "made").mkdir()
    made = Store(database.url(tmp_path / "made"))
    made.change(app.TABLES.create_all)
    migrate.upgrade(empty, app.TABLES)
    indexes, checks = (pg_indexes, pg_checks) if empty.shared else (sqlite_indexes, sqlite_checks)

    assert empty.ask(indexes) == made.ask(indexes)
    assert empty.ask(checks) == made.ask(checks)
    assert len(made.ask(indexes)) > 10
    assert len(made.ask(checks)) > 15
    made.close()


def sqlite_indexes(connection: Connection) -> set[str]:
    rows = connection.execute(text("select sql from sqlite_master where type = 'index' and sql <> ''"))
    return {" ".join(sql.lower().replace('"', "").split()) for sql in rows.scalars()}


def sqlite_checks(connection: Connection) -> set[str]:
    rows = connection.execute(text("select sql from sqlite_master where type = 'table'")).scalars()
    lines = (line.strip().rstrip(",") for sql in rows for line in sql.replace('"', "").splitlines())
    return {line for line in lines if line.startswith("CONSTRAINT ck_")}


def pg_indexes(connection: Connection) -> set[str]:
    query = "select indexdef from pg_indexes where schemaname = 'public' and tablename <> 'alembic_version'"
    return set(connection.execute(text(query)).scalars())


def pg_checks(connection: Connection) -> set[str]:
    """Give checks, keys and references alike."""
    query = (
        "select relname || ' ' || conname || ' ' || pg_get_constraintdef(pg_constraint.oid)"
        " from pg_constraint join pg_class on pg_class.oid = conrelid"
        " where relnamespace = cast('public' as regnamespace) and relname <> 'alembic_version'"
    )
    return set(connection.execute(text(query)).scalars())


def test_an_up_to_date_store_is_left_alone(empty: Store) -> None:
    migrate.upgrade(empty, app.TABLES)

    assert not migrate.upgrade(empty, app.TABLES)
    assert empty.ask(migrate.revision) == migrate.head()


def test_a_store_newer_than_the_program_is_refused(empty: Store) -> None:
    migrate.upgrade(empty, app.TABLES)
    empty.change(
        lambda connection: connection.execute(text("update alembic_version set version_num = '9999'"))
    )

    with pytest.raises(SchemaError, match="newer than this program"):
        migrate.upgrade(empty, app.TABLES)


# What the tables refuse


@pytest.fixture(scope="module")
def rented(tmp_path_factory: pytest.TempPathFactory, shared_database: Database) -> Iterator[Store]:
    """The store of a cloud with two instances that hold a GPU each; no test leaves anything in it."""

    async def rent() -> None:
        cloud = await open_cloud(folder, database=shared_database)
        for name in ("one", "two"):
            await cloud.rent(name)
        await cloud.plane.close()

    folder = tmp_path_factory.mktemp("rented") / "data"
    asyncio.run(rent())
    store = Store(shared_database.settings(folder).store_url)
    yield store
    store.close()


def attempts_like_the_first(store: Store, *others: dict[str, object]) -> None:
    """Try to add attempts that differ from the first of the store only in this."""

    def add(connection: Connection) -> None:
        first = connection.execute(select(attempts).order_by(attempts.c.id)).mappings().first()
        row = {name: value for name, value in (first or {}).items() if name != "id"}
        for number, other in enumerate(others, 2):
            new = row | {"number": number, "driver_name": f"vd-{number}"} | other
            connection.execute(insert(attempts).values(new))
        raise Undone

    with pytest.raises(Undone):
        store.change(add)


class Undone(Exception):
    """What was tried worked, and is not kept."""


def test_a_gpu_is_never_held_twice(rented: Store) -> None:
    with pytest.raises(IntegrityError, match=r"attempts\.gpu_id|uq_attempts_gpu"):
        attempts_like_the_first(rented, {"port": 20500})


def test_a_port_on_an_address_is_never_held_twice(rented: Store) -> None:
    with pytest.raises(IntegrityError, match=r"attempts\.bound_address, attempts\.port|uq_attempts_port"):
        attempts_like_the_first(rented, {"gpu_id": 3})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"gpu_id": 3, "bound_address": "127.0.0.2"}, id="port on another address"),
        pytest.param({"gpu_id": 3, "port": 20500}, id="another gpu and port"),
        pytest.param({"released_at": NOON}, id="released"),
    ],
)
def test_what_differs_may_be_held(rented: Store, other: dict[str, object]) -> None:
    attempts_like_the_first(rented, other)


def test_a_driver_name_is_unique_for_ever(rented: Store) -> None:
    again = {"released_at": NOON, "driver_name": "vd-2"}

    with pytest.raises(IntegrityError, match=r"attempts[._]driver_name"):
        attempts_like_the_first(rented, again, again)


@pytest.mark.parametrize(
    ("table", "values", "constraint"),
    [
        pytest.param(instances, {"name": ""}, "ck_instances_name", id="no name"),
        pytest.param(instances, {"name": "n" * 64}, "ck_instances_name", id="long name"),
        pytest.param(instances, {"price": Decimal("-0.01")}, "ck_instances_price", id="negative price"),
        pytest.param(instances, {"free_seconds": -1}, "ck_instances_free_seconds", id="free time"),
        pytest.param(instances, {"ended_at": NOON}, "ck_instances_end_reason", id="end without reason"),
        pytest.param(instances, {"end_reason": "lost"}, "ck_instances_end_reason", id="reason without end"),
        pytest.param(
            instances, {"ended_at": NOON, "end_reason": "whim"}, "ck_instances_reason", id="made-up reason"
        ),
        pytest.param(instances, {"error": True}, "ck_instances_error", id="error without end"),
        pytest.param(instances, {"unseen_since": NOON}, "ck_instances_sight", id="unseen without grace"),
        pytest.param(attempts, {"number": 10}, "ck_attempts_number", id="tenth attempt"),
        pytest.param(attempts, {"port": 0}, "ck_attempts_port", id="port 0"),
        pytest.param(attempts, {"port": 65_536}, "ck_attempts_port", id="port 65536"),
        pytest.param(attempts, {"ram": 0}, "ck_attempts_share", id="no memory"),
        pytest.param(gpus, {"price": Decimal(1_000_001)}, "ck_gpus_price", id="a million an hour"),
        pytest.param(clusters, {"first_port": 30_000}, "ck_clusters_ports", id="ports backwards"),
        pytest.param(gpus, {"type": "none"}, "(?i)foreign key", id="unknown type"),
    ],
)
def test_states_and_money_keep_within_bounds(
    rented: Store, table: Table, values: dict[str, object], constraint: str
) -> None:
    with pytest.raises(IntegrityError, match=constraint):
        rented.change(lambda connection: connection.execute(update(table).values(values)))


# Time and money

times = Table("times", MetaData(), Column("id", Integer, primary_key=True), Column("at", Instant))
sums = Table("sums", MetaData(), Column("id", Integer, primary_key=True), Column("of", Money))


def kept(store: Store, table: Table, column: str, *values: object) -> list[object]:
    """Give back what comes of these values, in the order of the table's own sorting."""
    store.change(table.create)
    store.change(lambda connection: connection.execute(insert(table), [{column: one} for one in values]))
    query = select(table.c[column]).order_by(table.c[column].nulls_first())
    return store.ask(lambda connection: list(connection.execute(query).scalars()))


def test_times_are_kept_to_the_microsecond_in_utc_and_sort(empty: Store) -> None:
    west = timezone(timedelta(hours=-8))
    late = datetime(2026, 3, 1, 12, tzinfo=west)
    early = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)

    back = kept(empty, times, "at", late, None, datetime(9999, 12, 31, tzinfo=UTC), early, NOON)

    assert back == [None, NOON, early, late, datetime(9999, 12, 31, tzinfo=UTC)]
    assert {moment.tzinfo for moment in back if isinstance(moment, datetime)} == {UTC}


def test_a_naive_time_is_refused(empty: Store) -> None:
    with pytest.raises(StatementError, match="naive"):
        kept(empty, times, "at", datetime(2026, 3, 1, 12))  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize(
    ("given", "back"),
    [
        pytest.param("0.64", "0.64", id="cents"),
        pytest.param("0.000001", "0.000001", id="the smallest"),
        pytest.param("0.0000005", "0.000001", id="half is rounded up"),
        pytest.param("0.00000049", "0", id="less is rounded down"),
        pytest.param("1000000", "1000000", id="the largest price"),
        pytest.param("0.1", "0.1", id="no float is this"),
    ],
)
def test_money_is_kept_to_the_micro_dollar(empty: Store, given: str, back: str) -> None:
    (amount,) = kept(empty, sums, "of", Decimal(given))

    assert amount == Decimal(back)
    assert isinstance(amount, Decimal)


def test_no_money_is_none(empty: Store) -> None:
    assert kept(empty, sums, "of", None) == [None]


def test_a_migration_can_rebuild_a_table_that_others_point_to(rented: Store) -> None:
    """SQLite drops it on the way, with rows in the tables that refer to it; PostgreSQL alters tables."""
    before = rented.ask(how_many, "instances")

    with rented.migrating() as connection:
        if rented.shared:
            connection.exec_driver_sql("alter table instances add column new integer not null default 0")
            connection.exec_driver_sql("alter table instances drop column new")
        else:
            rebuild(connection)

    assert rented.ask(how_many, "instances") == before > 0


def rebuild(connection: Connection) -> None:
    """Rebuild a table as Alembic does it on SQLite."""
    connection.exec_driver_sql("create table new_instances as select * from instances")
    connection.exec_driver_sql("drop table instances")
    connection.exec_driver_sql("alter table new_instances rename to instances")
    connection.exec_driver_sql("create unique index again on instances (key)")


def test_a_migration_that_breaks_references_is_undone(rented: Store) -> None:
    with pytest.raises(IntegrityError), rented.migrating() as connection:
        connection.exec_driver_sql("delete from users")

    assert rented.ask(how_many, "users") == 1


def how_many(connection: Connection, table: str) -> int:
    """Count the rows of a table."""
    return int(connection.exec_driver_sql(f"select count(*) from {table}").scalar_one())  # noqa: S608
