"""`vdserver move`: move the store from SQLite's file to PostgreSQL."""

from pathlib import Path

import click
import msgspec
from sqlalchemy import make_url

from vectordash.server import app
from vectordash.server.cli import output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import clock_of, data_option, demand_store, locked, settings_of
from vectordash.server.cli.unused import demand_unused
from vectordash.server.clock import as_written
from vectordash.server.db import copying, presence, restoring
from vectordash.server.db.copying import NotCopied
from vectordash.server.db.session import Store, of_file
from vectordash.server.settings import Settings
from vectordash.server.trouble import Trouble


@click.command(
    epilog=example("export VECTORDASH_DATABASE=postgresql://USER:SECRET@HOST/NAME", "vdserver move")
)
@data_option
@click.pass_context
def command(context: click.Context) -> None:
    """Move the store from the data folder's file to the empty PostgreSQL of VECTORDASH_DATABASE.

    The server must be stopped. Every row is copied and then compared. The file is kept in the folder
    `backups`. What was interrupted is done again by the same command.
    """
    settings = settings_of(context)
    if not settings.database:
        raise Trouble(
            "Say where to: set VECTORDASH_DATABASE to postgresql://USER:PASSWORD@HOST/NAME, a database with "
            "nothing in it (`createdb NAME` makes one)."
        )
    demand_store(settings.data)
    with locked(settings):
        target = Store(settings.store_url, readers=1)
        try:
            demand_unused(target, "vdserver move")
            app.migrate(target)
            rows = _copied(settings, target)
            place, now = _place(settings), clock_of(context)()
            told = f"The store of this folder was moved to {place} on {as_written(now)} (UTC)."
            restoring.note_move(settings.data, told)
            aside = restoring.set_aside(settings.data / "store.db", now)
            _demand_same(settings.data, aside, target)
        finally:
            target.close()
    output.say(
        f"Moved to {place}: {rows['instances']} instances, {rows['users']} accounts, {sum(rows.values())} "
        f"rows, each compared. The file is kept in {aside}.\n"
        "From now on set VECTORDASH_DATABASE wherever the cloud runs, and start `vdserver up`, or `vdserver "
        f"api` and `vdserver reconciler`, as many as you like.\n{_key(settings)}"
    )


def _copied(settings: Settings, target: Store) -> dict[str, int]:
    """Copy and compare, while nobody may write into the file; gives the rows of each table."""
    source = app.open_file(msgspec.structs.replace(settings, database=""))
    try:
        with source.migrating() as connection:
            presence.clear(connection)  # of a server that has ended
            restoring.fill(target, connection, app.TABLES, app.FRESH)
            return dict(copying.counts(connection, app.TABLES))
    finally:
        source.close()


def _demand_same(data: Path, aside: Path, target: Store) -> None:
    """Compare once more what can no longer change: a command may have written before the file went away."""
    source = of_file(aside)
    try:
        with source.snapshot() as one, target.snapshot() as other:
            copying.compare(one, other, app.TABLES)
    except NotCopied as error:
        source.close()
        aside.rename(data / "store.db")
        restoring.forget_move(data)
        raise Trouble(
            f"A command changed the store while it was moved: {error} The file is in its place again. "
            "Make the database anew (`dropdb NAME`, `createdb NAME`), and do the same again."
        ) from error
    finally:
        source.close()


def _place(settings: Settings) -> str:
    """Name the database without its password."""
    url = make_url(settings.store_url)
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{url.host or ''}{port}/{url.database or ''}"


def _key(settings: Settings) -> str:
    if settings.encryption_keys:
        return "Every process needs the same VECTORDASH_ENCRYPTION_KEYS as before."
    file = (settings.data / "encryption.key").resolve()
    return f"Keep {file}: every process needs that key, on other computers as well."
