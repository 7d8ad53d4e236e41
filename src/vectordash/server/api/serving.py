"""Serves the application over HTTP until told to stop; the only file that knows the HTTP server.

Granian's embedded server shares the process with the reconciler. It does not drain by itself: long polls
are answered, requests in flight get a grace, and what is left then is cancelled.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from vectordash.server.api.middleware import Outermost
from vectordash.server.settings import Settings
from vectordash.server.trouble import Trouble

_GRACE = 8.0
"""Seconds that a request in flight has after the signal."""
_BACKLOG = 2048
_HEADERS_WITHIN = 10_000
"""Milliseconds that a client has to send its headers; a silent one would hold a place."""


class PortInUse(Trouble):
    """Something else listens there; the message says where, and what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Take the port, for ourselves alone. Raises `PortInUse`.

    Without `SO_REUSEPORT`: with it, whoever runs as our user, a renter's program too, could listen beside us
    and be sent a part of the requests, tokens and all.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"Port {port} on {host} cannot be used: {error.strerror}. Stop what listens there, or take "
            f"another port: --port {port + 1}"
        ) from error
    return listener


class _Server(Server):
    """Granian's server on a listener of ours; its own always shares the port."""

    def __init__(self, app: Outermost, settings: Settings, listener: socket.socket) -> None:
        super().__init__(
            app,
            address=settings.host,
            port=settings.port,
            interface=Interfaces.ASGINL,
            # Telling HTTP/1 from HTTP/2 would wait for a silent client without end.
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=_HEADERS_WITHIN),
            backlog=_BACKLOG,
            backpressure=2 * _BACKLOG,
            log_enabled=False,
            websockets=False,
        )
        self._listener = listener

    def _init_shared_socket(self) -> None:
        self._shd = SocketHolder(self._listener.detach(), False, self.backlog)  # type: ignore[assignment, call-arg]  # noqa: FBT003


async def serve(
    app: Outermost,
    settings: Settings,
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    ready: Callable[[], None],
    draining: Callable[[], None],
) -> None:
    """Serve until `stop`, then drain: `draining` is to answer those who wait."""
    server = _Server(app, settings, listener)
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    try:
        await _listening(settings, serving)
        ready()
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        draining()
        await asyncio.sleep(0.1)
        if not serving.done():
            server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({serving}, timeout=_GRACE)
        for task in set(app.live):
            task.cancel()
        await asyncio.wait({serving}, timeout=2)
    finally:
        stopping.cancel()
        if not serving.done():
            serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _listening(settings: Settings, serving: asyncio.Task[None]) -> None:
    """Wait until a connection is accepted, so that whoever reads “ready” is never refused."""
    while not serving.done():
        try:
            _, writer = await asyncio.open_connection(settings.host, settings.port)
        except OSError:
            await asyncio.sleep(0.005)
        else:
            writer.close()
            await writer.wait_closed()
            return
