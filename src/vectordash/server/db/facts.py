"""A few facts about the store itself, such as which encryption key its secrets are sealed with."""

from sqlalchemy import Column, Connection, Table, Text, TypedColumns, insert, select, update

from vectordash.server.db.base import metadata


class FactColumns(TypedColumns):
    """A fact."""

    name = Column(Text, primary_key=True)
    value = Column(Text, nullable=False)


facts = Table("facts", metadata, FactColumns)


def fact(connection: Connection, name: str) -> str | None:
    """What does the store say of this?"""
    return connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar()


def state(connection: Connection, name: str, value: str) -> None:
    """Write a fact, new or not."""
    if fact(connection, name) is None:
        connection.execute(insert(facts).values(name=name, value=value))
    else:
        connection.execute(update(facts).where(facts.c.name == name).values(value=value))
