"""The real server as a process of its own, and renters that speak HTTP to it.

A pytest plugin: `servers.start()` starts `vdserver up` on a free port with a data folder of the test's own;
whatever is left at the end of the test is killed, instances first. `servers` keep their store in SQLite,
`any_servers` run a test once on each database.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from databases import Postgres, kinds
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings

T = TypeVar("T")
VDSERVER = Path(sys.executable).parent / "vdserver"
_PATIENCE = 30.0
"""Seconds after which a test gives up waiting; never a measure of speed."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.text)


def eventually(question: Callable[[], T], what: str) -> T:
    """Ask until the answer is truthy; fail, saying what was waited for, if it never is."""
    end = time.monotonic() + _PATIENCE
    while not (answer := question()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {_PATIENCE:.0f} s in vain: {what}")
        time.sleep(0.02)
    return answer


def free_port() -> int:
    """Find a port on loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send(
    port: int,
    token: str,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Reply:
    """Send a request to an API on loopback."""
    sent = {"Authorization": f"Bearer {token}", **(headers or {})}
    if body is not None:
        sent["Content-Type"] = "application/json"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read().decode())
    finally:
        connection.close()


@dataclass
class Server:
    """One running `vdserver up`."""

    process: subprocess.Popen[str]
    data: Path
    port: int
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    """What demo.env holds."""
    identity: str = ""
    """Of its cluster; part of every instance's mark."""
    database: str = ""

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """Open its store beside it, as commands do."""
        made = Store(Settings(data=self.data, database=self.database).store_url, readers=1)
        try:
            yield made
        finally:
            made.close()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Reply:
        """Send a request as the demo account."""
        return send(self.port, self.environment["VECTORDASH_TOKEN"], method, path, body, headers, timeout)

    def rent(self, name: str, gpu: str | None = None, **headers: str) -> Any:
        """Rent and wait until it is active; gives the instance."""
        wish = {"name": name, "gpu": gpu or self.environment["VECTORDASH_GPU"]}
        made = self.call("POST", "/api/instances", wish, {k.replace("_", "-"): v for k, v in headers.items()})
        assert made.status == 200, made.text
        key = made.json["instance"]["key"]
        shown = self.call("GET", f"/api/instances/{key}?wait=30").json["instance"]
        assert shown["status"] == "active", self.call("GET", f"/api/instances/{key}/events").text
        return shown

    def ssh_config(self, instance: Mapping[str, Any]) -> Path:
        """Write what `ssh -F` needs for this instance, as the README does."""
        folder = self.data.parent
        for kind in ("pem", "known_hosts"):
            file = folder / f"{instance['name']}.{kind}"
            file.touch(0o600)
            file.write_text(self.call("GET", f"/api/instances/{instance['key']}/{kind}").text)
        config = folder / f"{instance['name']}.ssh"
        text = self.call("GET", f"/api/instances/{instance['key']}/ssh_config").text
        config.write_text(text.replace(f" {instance['name']}.", f" {folder}/{instance['name']}."))
        return config

    def instances_alive(self) -> list[int]:
        """Which processes are instances of this server? By the mark in their environments."""
        mark = f"@{self.identity}".encode()
        return [pid for pid in _processes() if self.identity and mark in _environment(pid)]

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGINT) -> str:
        """Stop it as a person does; gives what it said."""
        self.process.send_signal(number)
        self.process.wait(_PATIENCE)
        return self.log.read_text()


@dataclass
class Servers:
    """The servers of one test."""

    folder: Path
    database: str = ""
    """PostgreSQL's URL, of a database without tables."""
    started: list[Server] = field(default_factory=list)

    def start(self, data: Path | None = None, port: int | None = None, **settings: str) -> Server:
        """Start a server and wait until it serves."""
        server = self.launch(data, port, **settings)
        eventually(lambda: self._serves(server), f"the server to serve:\n{server.log.read_text()}")
        return server

    def launch(self, data: Path | None = None, port: int | None = None, **settings: str) -> Server:
        """Start a server and do not wait."""
        data = data or self.folder / ".vectordash"
        port = port or free_port()
        log = self.folder / f"server-{len(self.started)}.log"
        environment = os.environ | {f"VECTORDASH_{name.upper()}": value for name, value in settings.items()}
        if self.database:
            environment["VECTORDASH_DATABASE"] = self.database
            if not self.started:
                migrate = [VDSERVER, "--data", data, "migrate"]
                subprocess.run(migrate, env=environment, cwd=self.folder, check=True, timeout=60)
        with log.open("w") as output:
            process = subprocess.Popen(
                [VDSERVER, "up", "--data", data, "--port", str(port), "--simulate"],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                cwd=self.folder,
            )
        server = Server(process, data, port, log, database=self.database)
        self.started.append(server)
        return server

    def _serves(self, server: Server) -> bool:
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended:\n{server.log.read_text()}")
        if f":{server.port}" not in server.log.read_text():
            return False
        server.environment = _exports((server.data / "demo.env").read_text())
        server.identity = (server.data / "local" / "id").read_text().strip()
        return server.call("GET", "/healthz").status == 200

    def end(self) -> None:
        """Kill every server that is left, and every instance of the test."""
        for server in self.started:
            if server.process.poll() is None:
                server.kill()
        for server in self.started:
            for pid in server.instances_alive():
                os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> bytes:
    """Of a process, and its arguments: the mark is in both, and one may be nobody's to read."""
    found = b""
    for file in ("environ", "cmdline"):
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/{file}").read_bytes()
    return found


def _exports(text: str) -> dict[str, str]:
    words = (line.removeprefix("export ").split("=", 1) for line in text.splitlines())
    return {name: value.strip("'") for name, value in words}


@pytest.fixture(params=kinds())
def any_servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Servers]:
    """The same, once with the store in SQLite and once in PostgreSQL."""
    if request.param == "sqlite":
        made = Servers(tmp_path)
        yield made
        made.end()
        return
    postgres: Postgres = request.getfixturevalue("postgres_server")
    name = postgres.new()
    made = Servers(tmp_path, postgres.url(name))
    yield made
    made.end()
    postgres.drop(name)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """A way to start real servers; all are gone at the end of the test."""
    made = Servers(tmp_path)
    yield made
    made.end()
