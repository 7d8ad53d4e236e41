"""A whole cloud in one process: a fake cluster, a real store on each database, a clock that a test sets.

A pytest plugin with the fixture `cloud`. Requests go through the real application, from its outermost layer
on, without a socket; the reconciler works when a test says so (`settle`), so nothing depends on timing.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import pytest_asyncio
from litestar.types import HTTPScope, Message

from databases import Database
from vectordash.server import app
from vectordash.server.accounts import service as accounts
from vectordash.server.app import ControlPlane
from vectordash.server.db.presence import Presence
from vectordash.server.drivers.base import SeenMachine
from vectordash.server.drivers.fake import FakeDriver, simple_machine
from vectordash.server.instances import leases
from vectordash.server.instances import store as instances
from vectordash.server.instances.keys import KeyPair, make_pair, seal_pair
from vectordash.server.machines import store as machines
from vectordash.server.reconciler import instance
from vectordash.server.reconciler.instance import Cluster, Surroundings
from vectordash.server.reconciler.machine import Watch

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class HandClock:
    """A clock that stands still until it is moved."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now

    def move(self, **by: float) -> None:
        """Let time pass: `move(hours=8)`."""
        self.now += timedelta(**by)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> Any:
        """What a refusal says."""
        return self.json["error"]


@dataclass
class Cloud:
    """The cloud of one test."""

    plane: ControlPlane
    driver: FakeDriver
    cluster: Cluster
    clock: HandClock
    token: str
    _watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self._watch = self.watch_of(self.plane.presence)

    def watch_of(self, presence: Presence) -> Watch:
        """Make the passes of a process."""
        settings = self.plane.settings
        return Watch(
            self.plane.store,
            self.clock,
            self.cluster,
            settings.grace,
            settings.machine_timeout,
            presence,
            self.plane.reconciler.vault,
        )

    async def call(
        self,
        method: str,
        path: str,
        json: object = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = "",
    ) -> Answer:
        """Send a request; as the cloud's own renter unless another token, or None, is given."""
        sent = {} if token is None else {"authorization": f"Bearer {token or self.token}"}
        if json is not None:
            body = msgspec.json.encode(json)
        if body is not None:
            sent["content-type"] = "application/json"
        sent |= {name.lower(): value for name, value in (headers or {}).items()}
        return await self.raw(method, path, list(sent.items()), body or b"")

    async def raw(
        self,
        method: str,
        path: str,
        headers: list[tuple[str, str]],
        body: bytes | Sequence[bytes],
        *,
        cut_off: bool = False,
    ) -> Answer:
        """Send exactly these headers and this body, in pieces if it is several; `cut_off`: then hang up."""
        path, _, query = path.partition("?")
        pieces = [body] if isinstance(body, bytes) else body
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "extensions": {},
        }
        sent: list[dict[str, object]] = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
        ]
        if cut_off:
            sent.append({"type": "http.disconnect"})
        elif sent:
            sent[-1]["more_body"] = False
        start: dict[str, Any] = {}
        answer = bytearray()

        async def receive() -> Any:
            if sent:
                return sent.pop(0)
            await asyncio.Event().wait()
            return None

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(cast("dict[str, Any]", message))
            elif message["type"] == "http.response.body":
                answer.extend(message["body"])

        await self.plane.app(cast("HTTPScope", scope), receive, send)
        told = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], told, bytes(answer))

    async def rent(self, name: str = "one", gpu: str = "1080 ti", **more: object) -> Any:
        """Rent, and give the instance as the answer shows it."""
        answer = await self.call("POST", "/api/instances", {"name": name, "gpu": gpu, **more})
        assert answer.status == 200, answer.body
        return answer.json["instance"]

    async def show(self, key: str) -> Any:
        """Show one instance."""
        return (await self.call("GET", f"/api/instances/{key}")).json["instance"]

    async def clear(self) -> None:
        """End whatever the cloud's own renter has, and let go of its GPUs."""
        for one in (await self.call("GET", "/api/instances")).json["instances"]:
            await self.call("DELETE", f"/api/instances/{one['key']}")
        await self.settle()

    async def events(self, key: str) -> list[str]:
        """Give the kinds of what happened to an instance."""
        answer = await self.call("GET", f"/api/instances/{key}/events")
        return [event["kind"] for event in answer.json["events"]]

    async def look(self) -> None:
        """Let one pass over the cluster be made."""
        await self._watch.look()

    async def work(self) -> None:
        """Let everybody be worked on who is due now, once."""
        for key in await self.plane.store.read(leases.due, self.clock(), 1000):
            await work_on(self.around(), key)
            self.plane.reconciler.tell(key)

    def around(self, store: Any = None) -> Surroundings:
        """Give what a worker of this process needs."""
        plane = self.plane
        clusters = {self.cluster.id: self.cluster}
        return Surroundings(
            store or plane.store, self.clock, plane.reconciler.vault, clusters, plane.presence
        )

    async def settle(self) -> None:
        """Let passes and work alternate until nothing is due now."""
        for _ in range(20):
            await self.look()
            if not await self.plane.store.read(leases.due, self.clock(), 1):
                return
            await self.work()
        raise AssertionError("the reconciler does not come to rest")

    async def new_renter(self, email: str, **how: Any) -> str:
        """Make another account and give a token of it."""
        scope = how.pop("scope", "full")
        store, now = self.plane.store, self.clock()
        await store.write(accounts.add_user, now, email, **how)
        _, token = await store.write(accounts.issue_token, now, email, name="test", scope=scope)
        return token

    async def list_gpus(self, **prices: str) -> None:
        """Offer every card; `gpu_2="0.85"` sets a price by id."""
        for gpu in await self.plane.store.read(machines.all_gpus):
            price = Decimal(prices.get(f"gpu_{gpu.id}", "0.64"))
            change = {"listed": True, "price": price}
            await self.plane.store.write(machines.change_listing, [gpu.id], change)

    async def change_listing(self, gpu_id: int, **change: object) -> None:
        """Change what the operator decides of a card: `listed`, `price`, `available_until`, …"""
        await self.plane.store.write(machines.change_listing, [gpu_id], change)

    async def stock_keys(self, count: int) -> None:
        """Put key pairs into the stock, so that no request makes its own. All are the same pair."""
        sealed = [seal_pair(self.plane.reconciler.vault, _pair())] * count
        await self.plane.store.write(instances.add_pairs, sealed)


async def work_on(around: Surroundings, key: str) -> None:
    """Bring one instance as far as it goes now, if it is due and nobody else has it."""
    term = around.term()
    for work in await around.store.write(leases.lease, term, [key]):
        await instance.work_on(around, work, term.until)


@functools.cache
def _pair() -> KeyPair:
    return make_pair()


async def open_cloud(
    folder: Path, *inventory: SeenMachine, database: Database | None = None, **settings: Any
) -> Cloud:
    """Make a cloud with these machines; a default one has two 1080 ti and a Titan V."""
    clock = HandClock()
    chosen = (database or Database("sqlite")).settings(folder, key_stock=0, **settings)
    store = app.open_store(chosen)
    keys = app.open_vault(chosen, store)
    default = simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 2, "NVIDIA TITAN V", vram=12)
    driver = FakeDriver(list(inventory) or [default])
    cluster = await app.join(store, clock, "fake", driver, (20000, 20999))
    presence = Presence(store, clock, "up")
    presence.enter()
    plane = app.build(chosen, store, keys, [cluster], clock, presence)
    cloud = Cloud(plane, driver, cluster, clock, token="")
    cloud.token = await cloud.new_renter("ada@example.org")
    await cloud.list_gpus()
    await cloud.look()
    return cloud


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_cloud(
    tmp_path_factory: pytest.TempPathFactory, shared_database: Database
) -> AsyncIterator[Cloud]:
    """One cloud for all tests of a module that leave nothing behind; they run in the module's loop."""
    made = await open_cloud(tmp_path_factory.mktemp("shared") / "data", database=shared_database)
    await made.stock_keys(100)
    yield made
    await made.plane.close()


@pytest_asyncio.fixture
async def new_cloud(tmp_path: Path, database: Database) -> AsyncIterator[Callable[..., Awaitable[Cloud]]]:
    """Let a test make clouds with machines or settings of its own."""
    made: list[Cloud] = []

    async def make(*inventory: SeenMachine, **settings: Any) -> Cloud:
        folder = tmp_path / f"data{len(made)}"
        made.append(await open_cloud(folder, *inventory, database=database, **settings))
        return made[-1]

    yield make
    for one in made:
        await one.plane.close()


@pytest_asyncio.fixture
async def cloud(tmp_path: Path, database: Database) -> AsyncIterator[Cloud]:
    """A cloud with one machine of two 1080 ti and a Titan V, and one renter; on each database."""
    made = await open_cloud(tmp_path / "data", database=database)
    yield made
    await made.plane.close()
