"""Copies a whole store from one connection to another, and verifies the copy: every row of both is compared.

Apart from any database: a backup from PostgreSQL, a restore into it and the move to it are the same copy.
Rows go over in batches, in the order that foreign keys want, so the largest store needs no more memory than
a small one. Whoever calls this sees to it that the source stands still (`Store.snapshot`, or a lock), and
commits the target only when `compare` has returned.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Row, Table, Text, func, insert, select, text
from sqlalchemy.exc import DataError, IntegrityError

from vectordash.server.trouble import Trouble

_BATCH = 1000
"""Rows that are held in memory at a time."""


class NotCopied(Trouble):
    """A table could not be copied, or its copy differs; the message names it."""


def copy(source: Connection, target: Connection, tables: MetaData) -> None:
    """Write every row of the source into the empty tables of the target. Raises `NotCopied`."""
    for table in tables.sorted_tables:
        try:
            for rows in _batches(source, table):
                target.execute(insert(table), rows)
        except (DataError, IntegrityError) as error:
            why = str(error.orig).splitlines()[0]
            raise NotCopied(
                f"The table `{table.name}` has a row that {target.dialect.name} refuses: {why}. Nothing was "
                "copied."
            ) from error
        _go_on_behind(source, target, table)


def compare(source: Connection, target: Connection, tables: MetaData) -> None:
    """Read every row of both sides, in the order of the primary key. Raises `NotCopied` if one differs."""
    for table in tables.sorted_tables:
        for one, other in zip_longest(_rows(source, table), _rows(target, table)):
            if one is None or other is None:
                here, there = count(source, table), count(target, table)
                raise NotCopied(f"The table `{table.name}` has {here} rows, and its copy has {there}.")
            if tuple(one) != tuple(other):
                key = ", ".join(f"{column.name} {one._mapping[column]}" for column in table.primary_key)  # noqa: SLF001 - the documented way
                raise NotCopied(f"The table `{table.name}` and its copy differ at {key}.")


def count(connection: Connection, table: Table) -> int:
    """How many rows has a table?"""
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def counts(connection: Connection, tables: MetaData) -> Mapping[str, int]:
    """How many rows has each table?"""
    return {table.name: count(connection, table) for table in tables.sorted_tables}


def _batches(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    query = select(table).order_by(*_order(connection, table))
    with connection.execute(query, execution_options={"yield_per": _BATCH}) as found:
        for rows in found.mappings().partitions():
            yield [dict(row) for row in rows]


def _rows(connection: Connection, table: Table) -> Iterator[Row[Any]]:
    query = select(table).order_by(*_order(connection, table))
    with connection.execute(query, execution_options={"yield_per": _BATCH}) as found:
        yield from found


def _order(connection: Connection, table: Table) -> Sequence[Any]:
    """Sort by the primary key, byte by byte on both databases: PostgreSQL would go by its language."""
    if connection.dialect.name != "postgresql":
        return list(table.primary_key)
    return [column.collate("C") if isinstance(column.type, Text) else column for column in table.primary_key]


# --- numbers that were given -------------------------------------------------------------------------------


def _go_on_behind(source: Connection, target: Connection, table: Table) -> None:
    """Let the target give no number that either side has given, even to a row that is gone."""
    column = table.autoincrement_column
    if column is None:
        return
    last = max(_last_given(source, table, column), _last_given(target, table, column))
    names = {"name": table.name, "column": column.name, "last": max(last, 1), "given": last > 0}
    if target.dialect.name == "postgresql":
        target.execute(text("select setval(pg_get_serial_sequence(:name, :column), :last, :given)"), names)
    elif table.dialect_options["sqlite"]["autoincrement"]:
        target.execute(text("delete from sqlite_sequence where name = :name"), names)
        if last:
            target.execute(text("insert into sqlite_sequence (name, seq) values (:name, :last)"), names)


def _last_given(connection: Connection, table: Table, column: Column[Any]) -> int:
    """What is the largest number that was ever given, as far as the database remembers?"""
    there: int = connection.execute(select(func.max(column))).scalar() or 0
    given: int | None = None
    if connection.dialect.name == "postgresql":
        question = text(
            "select pg_sequence_last_value(cast(pg_get_serial_sequence(:name, :column) as regclass))"
        )
        given = connection.execute(question, {"name": table.name, "column": column.name}).scalar()
    elif table.dialect_options["sqlite"]["autoincrement"]:
        question = text("select seq from sqlite_sequence where name = :name")
        given = connection.execute(question, {"name": table.name}).scalar()
    return max(there, given or 0)
