"""`vdserver restore`: put a backup in the store's place."""

from pathlib import Path

import click
from sqlalchemy import Connection

from vectordash.server import app, audit, vault
from vectordash.server.cli import output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import clock_of, data_option, locked, settings_of
from vectordash.server.cli.unused import demand_unused
from vectordash.server.clock import Clock
from vectordash.server.db import backup, presence, restoring
from vectordash.server.db.backup import Backup, BackupRefused, beside, put
from vectordash.server.db.migrate import head
from vectordash.server.db.session import Store, of_file
from vectordash.server.machines.doubt import doubt_free
from vectordash.server.settings import Settings
from vectordash.server.vault import VaultError


@click.command(epilog=example("vdserver restore /mnt/backups/monday.db"))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@data_option
@click.pass_context
def command(context: click.Context, file: Path) -> None:
    """Put a backup in the store's place: all of it, or nothing.

    The server must be stopped. Into PostgreSQL it goes only where nothing is yet. A file's old store is kept
    in the folder `backups` beside it. The encryption key must be there, or in the backup. Instances go on;
    those made since the backup are reported, and yours to decide about.
    """
    settings = settings_of(context)
    with locked(settings):
        found = _demand_backup(settings, file)
        keys = _missing_keys(settings, found)
        if settings.database:
            _demand_room(settings)
        with beside(settings.data / "store.db") as made:
            _prepare(found, made, clock_of(context))
            _keep_keys(settings.data, keys)
            if settings.database:
                aside = None
                _into_postgres(settings, made)
            else:
                aside = _into_file(settings, made, context)
    _tell(settings, found, aside, put_key=keys is not None)


def _demand_backup(settings: Settings, file: Path) -> Backup:
    if not file.exists():
        raise BackupRefused(f"There is no {file}.")
    there = settings.data / "store.db"
    if there.exists() and file.samefile(there):
        raise BackupRefused(f"{file} is the store itself. Name a backup.")
    return backup.look_into(file)


def _missing_keys(settings: Settings, found: Backup) -> str | None:
    """Give the backup's own keys if there are none here. Raises `VaultError` if the right one is nowhere."""
    if found.key_id is None:
        return None
    file = settings.data / "encryption.key"
    if (loaded := vault.load(settings)) is not None:
        if loaded.holds(found.key_id):
            return None
        where = "VECTORDASH_ENCRYPTION_KEYS" if settings.encryption_keys else str(file)
        what = "put the right one there" + (", or nothing: the backup brings its own" if found.keys else "")
        raise VaultError(
            f"The backup needs the encryption key {found.key_id}, and {where} has {loaded.current}. Nothing "
            f"was changed. Move what is there away, and {what}."
        )
    if found.keys is None:
        raise VaultError(
            f"The backup needs the encryption key {found.key_id}, which is not in it. Nothing was changed. "
            f"Put the key into {file}, or set VECTORDASH_ENCRYPTION_KEYS, and do the same again."
        )
    if not vault.from_text(found.keys).holds(found.key_id):
        raise VaultError(f"The key that is in {found.file} is not {found.key_id}, which it needs.")
    return found.keys


def _demand_room(settings: Settings) -> None:
    """Look before the long work whether the database can take it; gives it its tables."""
    target = Store(settings.store_url, readers=1)
    try:
        demand_unused(target, "vdserver restore")
        app.migrate(target)
        target.ask(restoring.demand_empty, app.TABLES, app.FRESH)
    finally:
        target.close()


def _prepare(found: Backup, made: Path, clock: Clock) -> None:
    """Make of a backup, in a file beside the store, the store that is to be."""
    backup.unpack(found, made)
    store = of_file(made)

    def mend(connection: Connection) -> None:
        presence.clear(connection)  # with them their leases are void
        doubt_free(connection)
        audit.record(connection, clock(), "operator", "restore", f"{found.file.name}, {found.made}")

    try:
        app.migrate(store)
        store.change(mend)
    finally:
        store.close()


def _keep_keys(data: Path, keys: str | None) -> None:
    """Put the backup's keys into the folder, where there are none."""
    if keys is not None:
        file = data / "encryption.key"
        with beside(file) as partial:
            partial.write_text("\n".join(keys.replace(",", " ").split()) + "\n", encoding="ascii")
            put(partial, file)


def _into_file(settings: Settings, made: Path, context: click.Context) -> Path | None:
    aside = restoring.replace(made, settings.data / "store.db", clock_of(context)())
    restoring.forget_move(settings.data)
    return aside


def _into_postgres(settings: Settings, made: Path) -> None:
    source, target = of_file(made), Store(settings.store_url, readers=1)
    try:
        with source.snapshot() as connection:
            restoring.fill(target, connection, app.TABLES, app.FRESH)
    finally:
        source.close()
        target.close()


def _tell(settings: Settings, found: Backup, aside: Path | None, *, put_key: bool) -> None:
    """Say what stands there now, and what the operator should know."""
    what = f"{found.made}, {found.instances} instances, {found.users} accounts"
    lines = [f"Restored {found.file}: {what}."]
    if found.revision < head():
        lines.append(f"It was upgraded from revision {found.revision} to {head()}.")
    if put_key:
        lines.append(f"Its encryption key is in {settings.data / 'encryption.key'} now.")
    if aside is not None:
        lines.append(f"What stood here before is kept in {aside}.")
    start = "vdserver api` and `vdserver reconciler" if settings.database else "vdserver up"
    lines.append(f"Start it: `{start}`. Free GPUs are offered again after the first look at the cluster.")
    lines.append(
        "Instances made since the backup run on, and are reported as orphans: `vdserver instance orphans` "
        "shows them, `vdserver instance adopt` or `purge` decides."
    )
    output.say("\n".join(lines))
