"""The driver's folder: one folder an instance, and a lock that says which of them runs.

`<folder>/<driver name>/` holds `home/` (the renter's disk), `etc/` (made-up files for the sandbox), `given`
(what it was last started from, sealed: there is a host key in it), `log` and `alive`. A lock on
`alive` is held by the instance's own processes, inherited at the moment they are made: it is free exactly
when none is left, whatever was killed, and however. Two servers never share a folder. Everything here
blocks; the driver calls it in a thread.
"""

import contextlib
import fcntl
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from vectordash.server.drivers.base import DriverError, SeenInstance, Spec
from vectordash.server.vault import Vault, VaultError

_NAME = re.compile(r"vd-[A-Za-z0-9_-]{1,120}")
_NEW = ".new-"


class _Given(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands in `given`."""

    gpus: tuple[str, ...]
    port: int
    sealed: bytes | None = None
    """The whole `Spec`; earlier versions left it out."""


class Folder:
    """The driver's folder; made if it is not there, and cleared of what a killed server had half made."""

    def __init__(self, path: Path, vault: Vault | None) -> None:
        self.path = path.absolute()
        self._vault = vault
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self.path.glob(f"{_NEW}*"):
            _delete(leftover)

    def identity(self) -> str:
        """Read who this cluster is, which is decided by the first to ask."""
        file = self.path / "id"
        with contextlib.suppress(FileNotFoundError):
            return file.read_text(encoding="ascii").strip()
        new = self.path / f"{_NEW}{secrets.token_hex(8)}"
        new.mkdir()
        (new / "id").write_text(secrets.token_hex(16), encoding="ascii")
        with contextlib.suppress(FileExistsError):
            os.link(new / "id", file)
        _delete(new)
        return file.read_text(encoding="ascii").strip()

    def places(self) -> Iterator["Place"]:
        """List the instances that have a folder."""
        for entry in os.scandir(self.path):
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Place(self.path / entry.name, self._vault)

    def place(self, name: str) -> "Place":
        """Tell where an instance's folder is, or would be."""
        if not _NAME.fullmatch(name):
            raise DriverError(f"{name!r} is not a driver name")
        return Place(self.path / name, self._vault)


class Place:
    """The folder of one instance, there or not."""

    def __init__(self, path: Path, vault: Vault | None) -> None:
        self.name = path.name
        self._vault = vault
        self.path = path
        self.home = path / "home"
        self.etc = path / "etc"
        self.log = path / "log"
        self._given = path / "given"
        self._alive = path / "alive"

    def make(self, owner: int | None) -> None:
        """Make the folder, whole or not at all; `owner` is who gets the home, if not we."""
        if self.path.exists():
            return
        new = self.path.parent / f"{_NEW}{self.name}-{secrets.token_hex(4)}"
        new.mkdir(mode=0o700)
        for part in (self.home, self.etc):
            (new / part.name).mkdir()
        (new / self.home.name).chmod(0o750)
        if owner is not None:
            os.chown(new / self.home.name, owner, owner)
        (new / self._alive.name).touch(mode=0o600)
        new.rename(self.path)

    def give(self, spec: Spec) -> None:
        """Write what it is made from now; another start may be given another port."""
        sealed = None
        if self._vault is not None:
            sealed = self._vault.seal(msgspec.json.encode(spec).decode(), self.name)
        new = self._given.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(_Given(spec.gpus, spec.port, sealed)))
        new.replace(self._given)

    def recall(self) -> Spec | None:
        """Read what it was made from; None if that was not written, or cannot be opened."""
        try:
            given = msgspec.json.decode(self._given.read_bytes(), type=_Given)
            if given.sealed is None or self._vault is None:
                return None
            return msgspec.json.decode(self._vault.open(given.sealed, self.name), type=Spec)
        except (OSError, msgspec.MsgspecError, VaultError):
            return None

    def look(self) -> SeenInstance | None:
        """Look at the instance; None if it has no folder."""
        state: Literal["running", "stopped"] = "running" if self.running() else "stopped"
        try:
            given = msgspec.json.decode(self._given.read_bytes(), type=_Given)
            return SeenInstance(self.name, state, given.gpus, given.port)
        except (OSError, msgspec.MsgspecError):
            return SeenInstance(self.name, state) if state == "running" or self.path.exists() else None

    def running(self) -> bool:
        """Tell whether a process of the instance is left."""
        try:
            file = os.open(self._alive, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def take(self) -> int | None:
        """Lock the instance for its processes to inherit; None if they hold the lock already."""
        file = os.open(self._alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.truncate(file, 0)
                return file
            # `running`, in another thread, locks it too, for microseconds.
            time.sleep(0.005)
        os.close(file)
        return None

    def last_words(self) -> str:
        """Read the end of the log, in one line."""
        with contextlib.suppress(OSError):
            return " ".join(self.log.read_text(encoding="utf-8", errors="replace")[-500:].split())
        return ""

    def wipe(self) -> None:
        """Delete the folder with all that its renter left in it."""
        _delete(self.path)


def _delete(path: Path) -> None:
    """Delete a folder, however deep, and though its owner has locked himself out of parts.

    By `rm`, which copes with depths at which Python's recursion ends, and holds no lock of ours meanwhile.
    """
    _run("/bin/rm", "-rf", "--", path)
    if os.path.lexists(path):
        _run("/bin/chmod", "-R", "u+rwx", "--", path)
        said = _run("/bin/rm", "-rf", "--", path)
        if os.path.lexists(path):
            raise DriverError(f"{path} cannot be deleted: {said[-300:].strip()}")


def _run(*command: str | Path) -> str:
    """Run a program of the system and return its complaints."""
    return subprocess.run(command, capture_output=True, check=False, text=True).stderr
