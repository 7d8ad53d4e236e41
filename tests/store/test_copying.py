"""Copies of a whole store: every row, every number behind the largest, and what differs is named."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, func, insert, select, text, update

from cloud import NOON
from databases import Postgres
from folders import add_pair, fill_up, unpack
from vectordash.server import app
from vectordash.server.accounts.tables import users
from vectordash.server.audit import audit
from vectordash.server.db import copying
from vectordash.server.db.copying import NotCopied
from vectordash.server.db.session import Store
from vectordash.server.machines.tables import gpus
from vectordash.server.settings import Settings

Make = Callable[[str], Store]
KINDS = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.needs("postgres")),
]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Store]:
    """The store of a cloud with a past, on SQLite."""
    store = app.open_store(Settings(data=unpack("0002", tmp_path)))
    yield store
    store.close()


@pytest.fixture
def empty(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a store that has its tables and nothing in them."""
    made: list[Store] = []
    names: list[tuple[Postgres, str]] = []

    def make(kind: str) -> Store:
        url = f"sqlite:///{tmp_path / f'empty{len(made)}.db'}"
        if kind == "postgresql":
            server: Postgres = request.getfixturevalue("postgres_server")
            names.append((server, server.new(server.template)))
            url = Settings(database=server.url(names[-1][1])).store_url
        made.append(Store(url))
        app.migrate(made[-1])

        def wipe(connection: Connection) -> None:
            for table in reversed(app.TABLES.sorted_tables):
                connection.execute(delete(table))

        made[-1].change(wipe)
        return made[-1]

    yield make
    for store in made:
        store.close()
    for server, name in names:
        server.drop(name)


def copy(source: Store, target: Store) -> None:
    with source.snapshot() as one, target.migrating() as other:
        copying.copy(one, other, app.TABLES)
        copying.compare(one, other, app.TABLES)


def compare(source: Store, target: Store) -> None:
    with source.snapshot() as one, target.snapshot() as other:
        copying.compare(one, other, app.TABLES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_goes_over_and_back(source: Store, empty: Make, kind: str) -> None:
    source.change(fill_up, 2500, 10)  # more than a batch
    there, back = empty(kind), empty("sqlite")

    copy(source, there)
    copy(there, back)

    compare(source, back)
    assert back.ask(copying.counts, app.TABLES)["audit"] > 2500


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_get_numbers_behind_the_largest(source: Store, empty: Make, kind: str) -> None:
    largest = source.ask(lambda connection: connection.execute(select(func.max(users.c.id))).scalar_one())
    target = empty(kind)
    copy(source, target)

    def add(connection: Connection) -> int:
        new = insert(users).values(email="new@example.org", created_at=NOON).returning(users.c.id)
        return connection.execute(new).scalar_one()

    assert target.change(add) == largest + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_never_gets_a_number_that_a_gone_one_had(source: Store, empty: Make, kind: str) -> None:
    """By way of another store and back."""

    def come_and_go(connection: Connection) -> None:
        connection.execute(text("update sqlite_sequence set seq = 70 where name = 'gpus'"))

    def add(connection: Connection) -> int:
        one = connection.execute(select(gpus).limit(1)).mappings().one()
        values = {**one, "uuid": "GPU-new"}
        del values["id"]
        return connection.execute(insert(gpus).values(values).returning(gpus.c.id)).scalar_one()

    source.change(come_and_go)
    there, back = empty(kind), empty("sqlite")
    copy(source, there)
    copy(there, back)

    assert (there.change(add), back.change(add)) == (71, 71)


def _change(connection: Connection) -> None:
    connection.execute(update(users).where(users.c.id == 1).values(email="eve@example.org"))


def _lose(connection: Connection) -> None:
    connection.execute(delete(audit).where(audit.c.id == 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_change, "`users` and its copy differ at id 1"),
        (_lose, "`audit`"),
        (add_pair, "`audit` has 11 rows, and its copy has 12"),
    ],
    ids=["changed", "lost", "added"],
)
def test_a_difference_is_found_and_its_table_named(
    source: Store, empty: Make, kind: str, change: Callable[..., None], told: str
) -> None:
    target = empty(kind)
    copy(source, target)

    target.change(change, *(["zoe"] if change is add_pair else []))

    with pytest.raises(NotCopied, match=told):
        compare(source, target)


@pytest.mark.needs("postgres")
def test_keys_are_in_the_same_order_on_both(source: Store, empty: Make) -> None:
    """A language's order puts `é` and `B` elsewhere than their bytes do."""
    names = ["B", "a", "é", "Z", "z", "_", "1", "ä", "😀"]
    facts = insert(app.TABLES.tables["facts"])
    values = [{"name": name, "value": "x"} for name in names]
    source.change(lambda connection: connection.execute(facts, values))

    copy(source, empty("postgresql"))


@pytest.mark.needs("postgres")
def test_what_the_other_database_refuses_is_told_by_its_table(source: Store, empty: Make) -> None:
    source.change(
        lambda connection: connection.execute(insert(app.TABLES.tables["facts"]).values(name="\0", value="x"))
    )
    target = empty("postgresql")

    with pytest.raises(NotCopied, match="`facts` has a row that postgresql refuses"):
        copy(source, target)

    assert set(target.ask(copying.counts, app.TABLES).values()) == {0}
