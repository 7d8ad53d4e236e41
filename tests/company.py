"""A cloud of real processes on a fake cluster: one `vdserver up`, or a company's APIs and reconcilers.

Not a plugin: a test has a `company` for a while. The cluster is a process of its own, so it outlives servers
and takes orders for faults. With a PostgreSQL the store is a database on it, otherwise SQLite's file.
"""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from databases import Postgres
from server import VDSERVER, Reply, eventually, free_port, send
from vectordash.server import app
from vectordash.server.accounts import service as accounts
from vectordash.server.clock import BootClock
from vectordash.server.db.facts import time_of
from vectordash.server.db.session import Store
from vectordash.server.drivers.fake.served import ServedFake
from vectordash.server.instances import store as instances
from vectordash.server.instances.keys import KeyPair, make_pair, seal_pair
from vectordash.server.machines import store as machines
from vectordash.server.settings import Settings

Kind = Literal["api", "reconciler", "up", "cluster"]
RENTER = "ada@example.org"


@dataclass
class Part:
    """A process of the cloud."""

    kind: Kind
    command: list[str]
    log: Path
    process: subprocess.Popen[str]
    port: int = 0

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        """What it has said so far, in all its lives."""
        return self.log.read_text()


@dataclass
class Company:
    """The processes of one cloud."""

    folder: Path
    postgres: Postgres | None
    settings_given: dict[str, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    token: str = ""

    def __post_init__(self) -> None:
        self.name = self.postgres.new(self.postgres.template) if self.postgres else ""
        self.socket = self.folder / "fake.sock"
        self.settings = Settings(
            data=self.folder / "data", database=self.postgres.url(self.name) if self.postgres else ""
        )
        self.environment = os.environ | {
            "VECTORDASH_DATABASE": self.settings.database,
            "VECTORDASH_CLUSTER": f"fake:{self.socket}",
            "VECTORDASH_DATA": str(self.settings.data),
            "VECTORDASH_KEY_STOCK": "0",
            "VECTORDASH_REQUESTS_A_SECOND": "100000",
            "VECTORDASH_REQUEST_BURST": "100000",
            **self.settings_given,
        }

    @functools.cached_property
    def store(self) -> Store:
        """The store, past the servers."""
        return Store(self.settings.store_url)

    def start_cluster(self, *options: str) -> Part:
        """Start the fake cluster."""
        command = [sys.executable, "-m", "vectordash.server.drivers.fake", str(self.socket), *options]
        part = self._start("cluster", command, 0)
        eventually(lambda: "listens" in part.said, "the cluster to listen")
        return part

    def start_api(self, kind: Literal["api", "up"] = "api", *before: str) -> Part:
        """Start an API, or a whole cloud, and wait until it answers. `before`: a program that runs it."""
        port = free_port()
        part = self._start(kind, [*before, str(VDSERVER), kind, "--port", str(port)], port)
        eventually(lambda: self._lives(part) and "serves" in part.said, "the API to serve")
        return part

    def start_reconciler(self) -> Part:
        """Start a reconciler and wait until it is at work."""
        part = self._start("reconciler", [str(VDSERVER), "reconciler"], 0)
        eventually(lambda: self._lives(part) and "keeps" in part.said, "the reconciler to work")
        return part

    def again(self, part: Part) -> None:
        """Start a part that has ended, on the same port, and do not wait."""
        with part.log.open("a") as output:
            part.process = self._popen(part.command, output)

    def stock_keys(self, count: int) -> None:
        """Lay in key pairs; all are the same pair."""
        sealed = [seal_pair(app.open_vault(self.settings, self.store), self._pair)] * count
        self.store.change(instances.add_pairs, sealed)

    @functools.cached_property
    def _pair(self) -> KeyPair:
        return make_pair()

    def open(self) -> None:
        """Make an account with a token, and offer every card."""

        def prepare(connection: Any) -> str:
            now = BootClock(time_of(connection))()
            accounts.add_user(connection, now, RENTER)
            every = [gpu.id for gpu in machines.all_gpus(connection)]
            machines.change_listing(connection, every, {"listed": True, "price": Decimal("0.64")})
            return accounts.issue_token(connection, now, RENTER, name="test")[1]

        eventually(lambda: self.store.ask(machines.all_gpus), "the cards to be known")
        self.token = self.store.change(prepare)

    def call(
        self,
        port: int,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Reply:
        """Send a request to one of the APIs."""
        return send(port, self.token, method, path, body, headers, timeout)

    def of_cluster(self, question: Callable[[ServedFake], Any]) -> Any:
        """Ask the cluster something, past the cloud."""

        async def ask() -> Any:
            driver = ServedFake(self.socket)
            try:
                return await question(driver)
            finally:
                await driver.close()

        return asyncio.run(ask())

    def end(self) -> None:
        """Kill what is left."""
        for part in self.parts:
            if part.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    part.process.send_signal(signal.SIGCONT)
                part.kill()
        self.store.close()
        if self.postgres is not None:
            self.postgres.drop(self.name)

    def _start(self, kind: Kind, command: list[str], port: int) -> Part:
        log = self.folder / f"{kind}-{len(self.parts)}.log"
        with log.open("w") as output:
            part = Part(kind, command, log, self._popen(command, output), port)
        self.parts.append(part)
        return part

    def _popen(self, command: list[str], output: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )

    def _lives(self, part: Part) -> bool:
        assert part.process.poll() is None, part.said
        return True


@contextlib.contextmanager
def company(
    folder: Path,
    postgres: Postgres | None,
    *,
    ups: int = 0,
    apis: int = 0,
    reconcilers: int = 0,
    cluster: tuple[str, ...] = ("--machines", "2", "--gpus", "4", "--faults", "0"),
    keys: int = 50,
    **settings: str,
) -> Iterator[Company]:
    """Have a cloud for a while, open for business."""
    made = Company(folder, postgres, {f"VECTORDASH_{name.upper()}": one for name, one in settings.items()})
    try:
        made.start_cluster(*cluster)
        for _ in range(reconcilers):
            made.start_reconciler()
        for kind in ["up"] * ups + ["api"] * apis:
            made.start_api(kind)
        made.open()
        made.stock_keys(keys)
        yield made
    finally:
        made.end()


def seconds_until(question: Callable[[], object], what: str) -> float:
    """Wait until it is so; gives how long that took."""
    began = time.monotonic()
    eventually(question, what)
    return time.monotonic() - began
