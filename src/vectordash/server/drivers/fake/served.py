"""One fake cluster for several processes: served on a Unix socket, and the driver that speaks to it.

A call is a connection. Who gives a call up closes it, and the cluster then drops the call, wherever it is:
it may have taken effect or not, as with a real cluster. The cluster is in the memory of its server alone:
when that ends, everything is gone.
"""

import asyncio
import contextlib
import inspect
import os
import secrets
import socket
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vectordash.server.drivers.base import Access, SeenInstance, SeenMachine, Spec, Unreachable
from vectordash.server.drivers.fake import wire
from vectordash.server.drivers.fake.driver import FakeDriver, Fault
from vectordash.server.trouble import Trouble

T = TypeVar("T")

_BACKLOG = 4096
_News = tuple[str, int]
"""Which life of the cluster, and how often something has changed in it."""


@contextlib.asynccontextmanager
async def serving(cluster: FakeDriver, path: Path) -> AsyncIterator[None]:
    """Serve a cluster on a socket, which is nobody else's to open, until the block ends.

    What a dead server has left there is replaced; raises `Trouble` if it is no socket, or if it is served.
    """
    desk = _Desk(cluster)
    listener = _listen(path)
    server = await asyncio.start_unix_server(desk.meet, sock=listener, limit=wire.LIMIT, backlog=_BACKLOG)
    try:
        yield
    finally:
        # First, while it is open: in between, another server would take it for a dead one's, and its place.
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - takes no time
        server.close()
        await desk.close()
        await server.wait_closed()


class ServedFake:
    """The driver of a cluster that another process serves, and what tests do to it behind a driver's back."""

    kind = "fake"
    user = "ubuntu"
    start_deadline = 15.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard: _News | None = None

    async def identity(self) -> str:
        """See `Driver`."""
        return await self._ask("identity", _TEXT)

    async def machines(self) -> Sequence[SeenMachine]:
        """See `Driver`."""
        return await self._ask("machines", _MACHINES)

    async def instances(self) -> Sequence[SeenInstance]:
        """See `Driver`."""
        return await self._ask("instances", _INSTANCES)

    async def instance(self, name: str) -> SeenInstance | None:
        """See `Driver`."""
        return await self._ask("instance", _INSTANCE, name)

    async def recall(self, name: str) -> Spec | None:
        """See `Driver`."""
        return await self._ask("recall", _SPEC, name)

    async def ensure(self, spec: Spec) -> None:
        """See `Driver`."""
        await self._ask("ensure", _NOTHING, spec)

    async def login(self, access: Access) -> None:
        """See `Driver`."""
        await self._ask("login", _NOTHING, access)

    async def remove(self, name: str) -> None:
        """See `Driver`."""
        await self._ask("remove", _NOTHING, name)

    async def changed(self) -> None:
        """See `Driver`. Each driver object hears all news, also of what changed between two calls."""
        self._heard = await self._ask("changed", _NEWS, self._heard)

    async def close(self) -> None:
        """See `Driver`."""

    async def order(self, fault: Fault) -> None:
        """Let calls go wrong, whoever makes them."""
        await self._ask("order", _NOTHING, wire.order_of(fault))

    async def there(self) -> list[SeenInstance]:
        """List all that is there, hidden or not, without a call that could go wrong."""
        return await self._ask("there", _INSTANCES)

    async def violations(self) -> list[str]:
        """List each time that two ran at once on a card, or at a port of a machine."""
        return await self._ask("violations", _TEXTS)

    async def stop(self, name: str) -> None:
        """Let an instance stop by itself, as in a power cut."""
        await self._ask("stop", _NOTHING, name)

    async def vanish(self, name: str) -> None:
        """Let an instance be gone without a trace."""
        await self._ask("vanish", _NOTHING, name)

    async def come_back(self, name: str) -> None:
        """Let a vanished instance be there again."""
        await self._ask("come_back", _NOTHING, name)

    async def _ask(self, call: str, gives: "msgspec.json.Decoder[T]", given: object = None) -> T:
        try:
            line = await self._exchange(wire.ask(call, given))
        except OSError as error:
            raise Unreachable(f"nobody serves the fake cluster at {self._path}: {error}") from error
        if not line.endswith(b"\n"):
            raise Unreachable(f"the fake cluster at {self._path} hung up")
        answer = msgspec.json.decode(line, type=wire.Answer)
        if answer.error is not None:
            raise wire.error_of(answer.error)
        return gives.decode(answer.result)

    async def _exchange(self, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=wire.LIMIT)
        try:
            writer.write(line)
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()


_NOTHING: "msgspec.json.Decoder[None]" = msgspec.json.Decoder(None)
_TEXT = msgspec.json.Decoder(str)
_TEXTS = msgspec.json.Decoder(list[str])
_MACHINES = msgspec.json.Decoder(tuple[SeenMachine, ...])
_INSTANCES = msgspec.json.Decoder(list[SeenInstance])
_INSTANCE: "msgspec.json.Decoder[SeenInstance | None]" = msgspec.json.Decoder(SeenInstance | None)
_SPEC: "msgspec.json.Decoder[Spec | None]" = msgspec.json.Decoder(Spec | None)
_NEWS = msgspec.json.Decoder(_News)


class _Desk:
    """The server's side: a task a connection."""

    def __init__(self, cluster: FakeDriver) -> None:
        self.cluster = cluster
        self._life = secrets.token_hex(8)
        self._tasks: set[asyncio.Task[None]] = set()

    def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop all calls that are under way."""
        await _end(*self._tasks)

    async def changed(self, heard: _News | None) -> _News:
        """Tell the news once they are others than a client has heard."""
        life, news = heard or (self._life, 0)
        if life == self._life:
            await self.cluster.news_after(news)
        return self._life, self.cluster.news

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one call, unless its caller leaves first."""
        try:
            with contextlib.suppress(OSError):
                if line := await reader.readline():
                    work, gone = asyncio.create_task(self._answer(line)), asyncio.create_task(reader.read(1))
                    try:
                        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
                        if work.done():
                            writer.write(work.result())
                            await writer.drain()
                    finally:
                        await _end(work, gone)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            ask = msgspec.json.decode(line, type=wire.Ask)
            takes, call = _CALLS[ask.call]
            result = call(self, msgspec.json.decode(ask.given, type=takes))
            return wire.answer(await result if inspect.isawaitable(result) else result)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is who must hear of it
            return wire.refusal(error)


_CALLS: dict[str, tuple[Any, Callable[[_Desk, Any], Any]]] = {
    "identity": (None, lambda desk, _: desk.cluster.identity()),
    "machines": (None, lambda desk, _: desk.cluster.machines()),
    "instances": (None, lambda desk, _: desk.cluster.instances()),
    "instance": (str, lambda desk, name: desk.cluster.instance(name)),
    "recall": (str, lambda desk, name: desk.cluster.recall(name)),
    "ensure": (Spec, lambda desk, spec: desk.cluster.ensure(spec)),
    "login": (Access, lambda desk, access: desk.cluster.login(access)),
    "remove": (str, lambda desk, name: desk.cluster.remove(name)),
    "changed": (_News | None, lambda desk, heard: desk.changed(heard)),
    "order": (wire.Order, lambda desk, order: desk.cluster.faults.append(wire.fault_of(order))),
    "there": (None, lambda desk, _: desk.cluster.census()),
    "violations": (None, lambda desk, _: desk.cluster.violations),
    "stop": (str, lambda desk, name: desk.cluster.stop(name)),
    "vanish": (str, lambda desk, name: desk.cluster.vanish(name)),
    "come_back": (str, lambda desk, name: desk.cluster.come_back(name)),
}
"""What each call takes, and what becomes of it."""


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what goes on, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _listen(path: Path) -> socket.socket:
    """Open the socket. It gets its name once it can be used, and only by us, in a dead one's place."""
    _demand_unserved(path)
    new = path.with_name(f".{path.name}-{os.getpid()}")
    new.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(new))
        new.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.settimeout(0)
        new.replace(path)
    except OSError as error:
        listener.close()
        new.unlink(missing_ok=True)
        raise Trouble(f"{path} cannot be served: {error}") from error
    return listener


def _demand_unserved(path: Path) -> None:
    """Refuse to take the place of a living server, or of another file."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise Trouble(f"{path} is no socket; give another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # too busy to take us at once, so it lives
    raise Trouble(f"another fake cluster is served at {path}; give another path, or end it")
