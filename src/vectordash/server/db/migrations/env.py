"""Alembic's way into the migrations: the connection and the tables are handed over by the caller."""

from typing import Any, Literal

from alembic import context

from vectordash.server.db.base import Instant, Money


def _plain(kind: str, item: object, _context: Any) -> str | Literal[False]:
    """Write our types into a migration as what the database sees, so that it never changes with them."""
    if kind == "type" and isinstance(item, Instant):
        return "sa.DateTime(timezone=True)"
    return "sa.BigInteger()" if kind == "type" and isinstance(item, Money) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    render_as_batch=True,
    compare_type=True,
    render_item=_plain,
)
with context.begin_transaction():
    context.run_migrations()
