"""The data folder, as commands see it: where it is, whose it is, and how its store is opened."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vectordash.server.db.migrate import head, revision
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings, load

_LOCK = "server.lock"


class FolderRefused(Exception):
    """The data folder cannot be used; the message says why and what to do."""


def settings_of(context: click.Context, **given: object) -> Settings:
    """Read the settings, the options of the command line first."""
    data: Any = (context.find_root().obj or {}).get("data")
    return load(**({"data": data} | given))


@contextmanager
def opened(context: click.Context) -> Iterator[Store]:
    """Open the store of a cloud that was started before, while it serves or not."""
    settings = settings_of(context)
    if not (settings.data / "store.db").exists():
        raise FolderRefused(
            f"There is no cloud in {settings.data}. Start one with `vdserver up`, or name its folder: --data."
        )
    store = Store(settings.database, readers=1)
    try:
        if (found := store.ask(revision)) != head():
            raise FolderRefused(
                f"The store in {settings.data} is of revision {found}, this program's is {head()}. "
                "Start `vdserver up` of the newer version once: it upgrades the store."
            )
        yield store
    finally:
        store.close()


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the data folder for one server; the second is told who has it."""
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = settings.data / _LOCK
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderRefused(
                f"A server already uses {settings.data}: {file.read().strip() or 'it is just starting'}. "
                "Stop it, or name another folder: vdserver --data FOLDER up"
            ) from None
        file.truncate()
        file.write(f"process {os.getpid()}, serving http://{settings.host}:{settings.port}\n")
        file.flush()
        yield


def holder(data: Path) -> str | None:
    """Tell who serves this folder now, if anybody does."""
    try:
        with (data / _LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (data / _LOCK).read_text().strip()
    return None
