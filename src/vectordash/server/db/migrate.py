"""Brings a store's tables to what this version needs.

Which revision the code needs is read from the names of the migration files, so that Alembic (a fifth of a
second to import) is loaded only when there is something to do.
"""

from pathlib import Path

from sqlalchemy import Connection, MetaData, inspect, text

from vectordash.server.db.session import Store
from vectordash.server.trouble import Trouble

_FOLDER = Path(__file__).parent / "migrations"


class SchemaError(Trouble):
    """The store's tables are of another version than this program; the message says what to do."""


def head() -> str:
    """Give the newest revision: files are named `0001_what.py`, `0002_what.py`, …"""
    return max(path.stem.split("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*.py"))


def revision(connection: Connection) -> str | None:
    """Which revision are the tables of? None: there are none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("select version_num from alembic_version")).scalar()


def demand_head(found: str | None, mend: str) -> None:
    """Refuse tables of another version; `mend` is the command that renews old ones. Raises `SchemaError`."""
    wanted = head()
    if found is None:
        raise SchemaError(f"The store has no tables yet. They are made by: {mend}")
    if found > wanted:
        raise SchemaError(
            f"The store is of revision {found}, newer than this program's {wanted}. Use the newer program."
        )
    if found < wanted:
        raise SchemaError(
            f"The store is of revision {found}, older than this program's {wanted}. It is upgraded by: {mend}"
        )


def upgrade(store: Store, metadata: MetaData) -> bool:
    """Bring the tables up to date; True if there was something to do. Raises `SchemaError`."""
    current, wanted = store.ask(revision), head()
    if current == wanted:
        return False
    if current is not None and current > wanted:
        demand_head(current, "")
    from alembic import command  # noqa: PLC0415 - slow to import, rarely needed
    from alembic.config import Config  # noqa: PLC0415

    with store.migrating() as connection:
        config = Config()
        config.set_main_option("script_location", str(_FOLDER))
        config.attributes.update(connection=connection, metadata=metadata)
        command.upgrade(config, "head")
    return True
