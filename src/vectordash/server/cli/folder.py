"""The data folder, as commands see it: where it is, whose it is, and how its store is opened."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from vectordash.server.clock import BootClock, Clock
from vectordash.server.settings import Settings, load
from vectordash.server.trouble import Trouble

if TYPE_CHECKING:
    from vectordash.server.db.session import Store

F = TypeVar("F", bound=Callable[..., Any])

_LOCK = "server.lock"
_TRIES = 5
_PAUSE = 0.05
"""Seconds between two tries to take the lock."""


class FolderRefused(Trouble):
    """The data folder cannot be used; the message says why and what to do."""


def data_option(command: F) -> F:
    """Let `--data` stand behind a command too, not only before it."""

    def keep(context: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.find_root().ensure_object(dict)["data"] = value

    return click.option(
        "--data",
        metavar="FOLDER",
        expose_value=False,
        callback=keep,
        help="The folder of the cloud.  [default: .vectordash]",
    )(command)


def settings_of(context: click.Context, **given: object) -> Settings:
    """Read the settings, the options of the command line first."""
    data: Any = (context.find_root().obj or {}).get("data")
    return load(**({"data": data} | given))


def clock_of(context: click.Context | None) -> Clock:
    """Give the command's clock: one for the whole command, so that all it writes is of one time."""
    if context is None:
        return BootClock()
    values = context.find_root().ensure_object(dict)
    if "clock" not in values:
        values["clock"] = _clock(settings_of(context))
    clock: Clock = values["clock"]
    return clock


def _clock(settings: Settings) -> Clock:
    """Make the clock that the servers go by: the database's time where several share it."""
    if not settings.database:
        return BootClock()
    from vectordash.server.db.facts import time_of  # noqa: PLC0415 - slow, and `--help` needs none of it
    from vectordash.server.db.session import Store  # noqa: PLC0415

    store = Store(settings.store_url, readers=1)
    try:
        return BootClock(store.ask(time_of))
    finally:
        store.close()


@contextmanager
def opened(context: click.Context) -> Iterator["Store"]:
    """Open the store of a cloud that was started before, while it serves or not."""
    from vectordash.server.db.migrate import demand_head, revision  # noqa: PLC0415 - slow, as above
    from vectordash.server.db.restoring import demand_not_moved  # noqa: PLC0415
    from vectordash.server.db.session import Store  # noqa: PLC0415

    settings = settings_of(context)
    if not settings.database:
        demand_not_moved(settings.data)
        demand_store(settings.data)
    store = Store(settings.store_url, readers=1)
    try:
        demand_head(store.ask(revision), mend(settings))
        yield store
    finally:
        store.close()


def mend(settings: Settings) -> str:
    """Name the command that makes the store's tables those of this program."""
    return "vdserver migrate" if settings.database else "vdserver up"


def demand_store(data: Path) -> None:
    """Refuse a folder where no cloud was ever started, or whose store is somebody else's."""
    file = data / "store.db"
    if not file.exists():
        raise FolderRefused(
            f"There is no cloud in {data}. Start one with `vdserver up`, or name its folder: --data FOLDER"
        )
    if not os.access(file, os.R_OK | os.W_OK):
        raise FolderRefused(
            f"{file} belongs to user {file.stat().st_uid}, and you are {os.geteuid()}: use vdserver as that "
            f"user, such as: sudo -u '#{file.stat().st_uid}' vdserver …"
        )


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the data folder for one server; the second is told who has it."""
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.data.chmod(0o700)
    path = settings.data / _LOCK
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        if not _took(file):
            raise FolderRefused(
                f"A server already uses {settings.data}: {file.read().strip() or 'it is just starting'}. "
                "Stop it, or name another folder: vdserver --data FOLDER up"
            )
        file.truncate()
        file.write(f"process {os.getpid()}, serving {settings.base_url}\n")
        file.flush()
        yield


def holder(data: Path) -> str | None:
    """Tell who serves this folder now, if anybody does."""
    try:
        with (data / _LOCK).open() as file:
            # Shared, so that two who ask at once do not take each other for a server.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (data / _LOCK).read_text().strip()
    return None


def _took(file: TextIO) -> bool:
    """Take the lock; whoever only asks who has it, as `holder` does, lets go of it at once."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        else:
            return True
    return False
