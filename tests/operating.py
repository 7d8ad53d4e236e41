"""An operator at a keyboard: runs `vdserver` in this process, or as one of its own, on a prepared folder."""

import asyncio
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloud import Cloud, HandClock, open_cloud
from vectordash.server.cli import run
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import StartFailed
from vectordash.server.drivers.fake import Fault
from vectordash.server.settings import Settings

PROGRAM = [sys.executable, "-c", "from vectordash.server.cli import main; main()"]


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The rows of a table, as a program reads them."""
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        """The answer to `--json`."""
        return json.loads(self.out)


@dataclass
class Operator:
    """Somebody with a data folder."""

    data: Path
    capture: pytest.CaptureFixture[str]
    clock: Callable[[], Any] = field(default_factory=HandClock)

    def run(self, *arguments: str) -> Ran:
        """Run a command here, and expect nothing of it."""
        self.capture.readouterr()
        code = run(["--data", str(self.data), *arguments], clock=self.clock)
        said = self.capture.readouterr()
        return Ran(code, said.out, said.err)

    def do(self, *arguments: str) -> Ran:
        """Run a command that works."""
        ran = self.run(*arguments)
        assert ran.code == 0, ran
        return ran

    def refused(self, *arguments: str, code: int = 1) -> str:
        """Run a command that is refused: in one line, with no result. Gives the line."""
        ran = self.run(*arguments)
        assert (ran.code, ran.out) == (code, ""), ran
        assert ran.err.startswith("vdserver: ")
        assert ran.err.count("\n") == 1
        return ran.err

    def start(self, *arguments: str, **how: Any) -> "subprocess.Popen[str]":
        """Start a command as a process of its own."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
        return subprocess.Popen([*PROGRAM, "--data", str(self.data), *arguments], **streams)

    def see(self, *arguments: str, columns: int = 80, typed: str = "") -> list[str]:
        """Run a command on a terminal of so many columns; gives the lines that a person sees.

        `typed` answers what it asks.
        """
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        os.write(ours, typed.encode())
        process = self.start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        seen = bytearray()
        with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor
            while chunk := _read(terminal):
                seen += chunk
        process.wait()
        return seen.decode().replace("\r\n", "\n").splitlines()

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open the store, as the server does beside the commands."""
        store = Store(Settings(data=self.data).store_url)
        try:
            yield store
        finally:
            store.close()


def _read(terminal: Any) -> bytes:
    """Read what was written; nothing once the other end is closed, which a terminal tells as an error."""
    try:
        return bytes(terminal.read(65536))
    except OSError:
        return b""


async def _quiet(data: Path) -> None:
    data.mkdir(mode=0o700)
    made = await open_cloud(data)
    await made.plane.close()


async def _busy(data: Path) -> None:
    data.mkdir(mode=0o700)
    made = await open_cloud(data)
    await _have_a_history(made)
    await made.plane.close()


async def _have_a_history(cloud: Cloud) -> None:
    """`ended` was deleted; `steady` is active, and `unlucky` never started."""
    await cloud.rent("ended", gpu="Titan V")
    await cloud.settle()
    cloud.clock.move(hours=1, minutes=10)
    await cloud.call("DELETE", "/api/instances/ended")
    await cloud.settle()
    await cloud.rent("steady")
    await cloud.settle()
    cloud.driver.faults.append(Fault("ensure", StartFailed("the disk\tis full\nof ice"), times=9))
    await cloud.rent("unlucky", gpu="Titan V")
    await cloud.settle()
    cloud.driver.faults.clear()


@pytest.fixture(scope="session")
def quiet_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as `open_cloud` makes it, never changed."""
    data = tmp_path_factory.mktemp("quiet") / "data"
    asyncio.run(_quiet(data))
    return data


@pytest.fixture(scope="session")
def busy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder where things have happened, never changed."""
    data = tmp_path_factory.mktemp("busy") / "data"
    asyncio.run(_busy(data))
    return data


@pytest.fixture
def operator(quiet_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    """An operator with three listed GPUs (two 1080 ti, a Titan V) and one account, `ada@example.org`."""
    shutil.copytree(quiet_data, tmp_path / "data")
    return Operator(tmp_path / "data", capsys)


@pytest.fixture
def busy(busy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    """An operator of a cloud with a past; see `_have_a_history`. It is 14:00."""
    shutil.copytree(busy_data, tmp_path / "data")
    clock = HandClock()
    clock.move(hours=2)
    return Operator(tmp_path / "data", capsys, clock)
