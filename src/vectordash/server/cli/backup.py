"""`vdserver backup`: write all that is in the store into one file, while it is in use."""

from pathlib import Path

import click

from vectordash.server import app
from vectordash.server.cli import output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import clock_of, data_option, demand_store, mend, settings_of
from vectordash.server.db import backup
from vectordash.server.db.backup import Backup, BackupRefused
from vectordash.server.db.migrate import demand_head, revision
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings
from vectordash.server.vault import VaultError


@click.command(epilog=example("vdserver backup /mnt/backups/monday.db", "vdserver backup --force latest.db"))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--with-key", is_flag=True, help="Put the encryption key in, too. Whoever has FILE has all.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@data_option
@click.pass_context
def command(context: click.Context, file: Path, *, with_key: bool, force: bool) -> None:
    """Write all that is in the store into one file, while it is in use.

    The file is the same whether the store is in SQLite or PostgreSQL; `vdserver restore` puts it into either.
    The encryption key is not in it: keep a copy of that elsewhere. Disks of instances are not in it.
    """
    settings = settings_of(context)
    if not settings.database:
        demand_store(settings.data)
    _demand_place(settings, file, force=force)
    keys = _keys(settings) if with_key else None
    store = Store(settings.store_url, readers=1)
    try:
        found = store.ask(revision)
        if found is None or store.shared:
            demand_head(found, mend(settings))
        now = clock_of(context)()
        made = backup.write(store, file, now, app.TABLES, keys)
    finally:
        store.close()
    _tell(settings, made)


def _demand_place(settings: Settings, file: Path, *, force: bool) -> None:
    """Refuse what a slip of the hand would make a loss."""
    if file.is_dir():
        raise BackupRefused(f"{file} is a folder. Name a file in it, such as {file / 'vectordash.db'}.")
    if not file.parent.is_dir():
        raise BackupRefused(f"There is no folder {file.parent}. Make it: mkdir -p {file.parent}")
    data = settings.data.resolve()
    if file.resolve().is_relative_to(data):
        raise BackupRefused(
            f"{file} lies in the data folder {data}, and would be lost with it. Name a place elsewhere, best "
            "on another disk."
        )
    if not file.exists() and not file.is_symlink():
        return
    if not file.is_file():
        raise BackupRefused(f"{file} is no file that could be replaced. Name another.")
    if any(one.exists() and one.samefile(file) for one in _own(data)):
        raise BackupRefused(f"{file} is a file of the cloud itself. Name another.")
    if not force:
        raise BackupRefused(f"{file} is there already. Name another, or replace it: --force")


def _own(data: Path) -> tuple[Path, ...]:
    return data / "store.db", data / "encryption.key"


def _keys(settings: Settings) -> str:
    if settings.encryption_keys:
        return settings.encryption_keys
    file = settings.data / "encryption.key"
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError as error:
        raise VaultError(
            f"There is no encryption key here: {file} is missing, and VECTORDASH_ENCRYPTION_KEYS is not set."
        ) from error


def _tell(settings: Settings, made: Backup) -> None:
    """Say what was made, and what is still to be kept safe."""
    size = made.file.stat().st_size / 1e6
    output.say(
        f"{made.file.resolve()}: {size:.1f} MB, {made.instances} instances, {made.users} accounts, "
        f"{made.made}, revision {made.revision}."
    )
    if made.key_id is None:
        output.say("Nothing was ever sealed in this store: it has no encryption key yet.")
    elif made.keys is not None:
        output.say(
            f"The encryption key {made.key_id} IS in it: whoever reads this file can open every private key "
            "of your renters."
        )
    else:
        where = (
            "It is in the setting VECTORDASH_ENCRYPTION_KEYS"
            if settings.encryption_keys
            else f"It is in {(settings.data / 'encryption.key').resolve()}"
        )
        output.say(
            f"The encryption key {made.key_id} is NOT in it, and without it nobody can read the private keys "
            f"of your renters. {where}: keep a copy elsewhere, apart from this file."
        )
