"""A few facts about the store itself, such as which encryption key its secrets are sealed with."""

from datetime import UTC, datetime

from sqlalchemy import Column, Connection, Table, Text, TypedColumns, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from vectordash.server.db.base import metadata


class FactColumns(TypedColumns):
    """A fact."""

    name = Column(Text, primary_key=True)
    value = Column(Text, nullable=False)


facts = Table("facts", metadata, FactColumns)


def time_of(connection: Connection) -> datetime | None:
    """What time is it by the database's clock? None: it has none of its own."""
    if connection.dialect.name == "sqlite":
        return None
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


def fact(connection: Connection, name: str) -> str | None:
    """What does the store say of this?"""
    return connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar()


def settle(connection: Connection, name: str, value: str) -> str:
    """Write a fact unless there is one; gives the one that holds, whoever else writes it at the same time."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(kind.insert(facts).values(name=name, value=value).on_conflict_do_nothing())
    return connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar_one()


def state(connection: Connection, name: str, value: str) -> None:
    """Write a fact, new or not."""
    if fact(connection, name) is None:
        connection.execute(insert(facts).values(name=name, value=value))
    else:
        connection.execute(update(facts).where(facts.c.name == name).values(value=value))
