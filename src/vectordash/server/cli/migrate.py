"""`vdserver migrate`: bring the store's tables to what this program needs."""

import click

from vectordash.server import app
from vectordash.server.cli import output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import data_option, locked, settings_of
from vectordash.server.cli.unused import demand_unused
from vectordash.server.db.migrate import head
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings


@click.command(epilog=example("vdserver migrate"))
@data_option
@click.pass_context
def command(context: click.Context) -> None:
    """Bring the store's tables to what this program needs: all of it, or nothing.

    On PostgreSQL every process that uses the store must have ended; make a backup first. On SQLite `vdserver
    up` does this by itself, with a backup.
    """
    settings = settings_of(context)
    if not settings.database:
        with locked(settings):
            app.open_store(settings).close()
    else:
        _migrate(settings)
    output.say(f"The store is of revision {head()}.")


def _migrate(settings: Settings) -> None:
    store = Store(settings.store_url, readers=1)
    try:
        demand_unused(store, "vdserver migrate")
        app.migrate(store)
    finally:
        store.close()
