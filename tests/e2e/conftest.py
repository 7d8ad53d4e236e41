"""Rented machines for the tests of logins: one with a sandbox and one without, each for a whole module."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from renting import Keys, free_port, keys, make_spec, specify, ssh_config, write_ssh_config

from vectordash.server.drivers.base import Spec
from vectordash.server.drivers.local import processes
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.drivers.local.sandbox import NoSandbox, Sandbox

__all__ = ["keys", "make_spec", "ssh_config"]


@dataclass(frozen=True)
class Rented:
    """A running instance and the way into it with stock OpenSSH."""

    spec: Spec
    config: Path
    driver: LocalDriver

    def command(self, *words: str, program: str = "ssh", options: tuple[str, ...] = ()) -> list[str]:
        """Write a command line; the machine is called `machine`."""
        return [
            program,
            "-F",
            str(self.config),
            *options,
            *(("machine",) if program == "ssh" else ()),
            *words,
        ]

    def ssh(
        self, *words: str, options: tuple[str, ...] = (), **more: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command on the machine to its end."""
        more = {"stdin": subprocess.DEVNULL} | more if "input" not in more else more
        return subprocess.run(
            self.command(*words, options=options), capture_output=True, check=False, timeout=30, **more
        )

    def out(self, *words: str, **more: Any) -> str:
        """Run a command on the machine, which must succeed; what it printed."""
        done = self.ssh(*words, **more)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def tool(self, program: str, *words: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run scp or sftp, which must succeed."""
        done = subprocess.run(
            self.command(*words, program=program), capture_output=True, check=False, timeout=30, **more
        )
        assert done.returncode == 0, done
        return done

    def memory(self) -> int:
        """Tell the memory of its SSH server, in KiB."""
        mark = processes.mark(self.spec.name, asyncio.run(self.driver.identity()))
        statuses = [Path(f"/proc/{each.pid}/status").read_text() for each in processes.family(mark)]
        return max(int(line.split()[1]) for text in statuses for line in text.splitlines() if "VmRSS" in line)


@contextlib.contextmanager
def rented(folder: Path, keys: Keys, sandbox: NoSandbox | None) -> Iterator[Rented]:
    """Rent a machine for a while."""
    spec = specify(keys, "vd-login")
    with asyncio.Runner() as runner:
        driver = LocalDriver(folder / "local", simulate=True, sandbox=sandbox)
        runner.run(driver.ensure(spec))
        try:
            yield Rented(spec, write_ssh_config(folder, keys, spec), driver)
        finally:
            runner.run(driver.remove(spec.name))
            runner.run(driver.close())


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Rented]:
    """A machine in a sandbox."""
    with rented(tmp_path_factory.mktemp("sandboxed"), keys, None) as it:
        assert isinstance(it.driver.sandbox, Sandbox), it.driver.sandbox
        yield it


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Rented]:
    """A machine without a sandbox."""
    with rented(tmp_path_factory.mktemp("plain"), keys, NoSandbox("the test wants none")) as it:
        yield it


@pytest.fixture(params=["machine", "plain"])
def either(request: pytest.FixtureRequest) -> Rented:
    """A machine in a sandbox, and then one without."""
    it = request.getfixturevalue(request.param)
    assert isinstance(it, Rented)
    return it


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait for something that happens by itself."""

    def wait(condition: Callable[[], Any], within: float = 5.0) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)

    return wait


@pytest.fixture
def a_free_port() -> int:
    """A port that nobody listens on."""
    return free_port()
