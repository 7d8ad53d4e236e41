"""What tests with real logins share: keys, specifications made with them, and OpenSSH's configuration."""

import asyncio
import contextlib
import functools
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from vectordash.server.drivers.base import Access, Spec
from vectordash.server.drivers.local import processes
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.drivers.local.sandbox import NoSandbox


@dataclass(frozen=True)
class Keys:
    """A renter's key pair and a machine's, each as it is stored."""

    pem: str
    public: str
    host_key: str
    host_public: str

    def access(self, spec: Spec, user: str = "ubuntu") -> Access:
        """Describe the way into an instance."""
        return Access(spec.address, spec.port, user, self.host_public, self.pem)


def make_keys() -> Keys:
    """Make a renter's key pair and a machine's."""
    renter, host = rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()
    return Keys(
        renter.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode(),
        renter.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        host.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
        host.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
    )


@pytest.fixture(scope="session")
def keys() -> Keys:
    """The keys that instances are made with."""
    return make_keys()


@pytest.fixture(scope="session")
def other_keys() -> Keys:
    """Keys that no instance knows."""
    return make_keys()


@pytest.fixture
def make_spec(keys: Keys) -> Callable[..., Spec]:
    """Make the specification of an instance."""
    return functools.partial(specify, keys)


@pytest.fixture
def busy_port() -> Iterator[int]:
    """Give a port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def ssh_config(tmp_path: Path, keys: Keys) -> Callable[[Spec], Path]:
    """Write the configuration with which OpenSSH's programs know an instance as `machine`."""
    return lambda spec: write_ssh_config(tmp_path, keys, spec)


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
        done: Any = subprocess.run(
            self.command(*words, options=options), capture_output=True, check=False, timeout=30, **more
        )
        assert isinstance(done, subprocess.CompletedProcess)
        return done

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


def write_ssh_config(folder: Path, keys: Keys, spec: Spec) -> Path:
    """Write the configuration with which OpenSSH's programs know an instance as `machine`."""
    (folder / "pem").write_text(keys.pem)
    (folder / "pem").chmod(0o600)
    (folder / "known_hosts").write_text(f"[{spec.address}]:{spec.port} {keys.host_public}\n")
    config = folder / f"{spec.name}.conf"
    config.write_text(
        f"Host machine\nHostName {spec.address}\nPort {spec.port}\nUser ubuntu\nIdentityFile {folder}/pem\n"
        f"IdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\n"
    )
    return config


def specify(keys: Keys, name: str = "vd-one", port: int | None = None) -> Spec:
    """Make the specification of an instance, on a free port if none is given."""
    return Spec(
        name=name,
        hostname="brave-otter",
        image="ubuntu-24.04",
        machine="here",
        gpus=(),
        cores=1,
        ram=1,
        storage=1,
        address="127.0.0.1",
        port=port or free_port(),
        authorized_keys=(keys.public,),
        host_key=keys.host_key,
    )


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
