"""The outermost layer, raw ASGI: what holds for every answer, whoever gives it.

A request id, the documented headers (`Content-Type`, and `Status`, which repeats the status line), one log
line, and two things that the framework would do otherwise: `OPTIONS` is refused as any other method that a
path does not have, and `//api//gpus` is the same as `/api/gpus`. Paths are logged, never queries or headers,
and a token that somebody put into a path is not.
"""

import asyncio
import logging
import re
import secrets
import time
from http import HTTPStatus
from typing import Any, cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from vectordash.wire import errors

log = logging.getLogger("vectordash.access")

_JSON = b"application/json; charset=utf-8"
_NAMES = {kind.code: kind.name for kind in (errors.IncompleteProfile, errors.GpuUnavailable)}
"""Codes that the reference names otherwise than HTTP does."""
_LONGEST_PATH = 200
"""Characters of a path that are logged."""
_TOKEN = re.compile(r"vd_[A-Za-z0-9_-]{16,}")


def is_api(path: str) -> bool:
    """Tell whether the API's rules hold for this path."""
    return path == "/api" or path.startswith("/api/")


def method_of(scope: Scope) -> str:
    """Give the method that was sent: the framework sees another one in place of `OPTIONS`."""
    return str(scope["state"]["method"])


class Outermost:
    """Wraps the application; `live` are the tasks of requests in flight, for the drain at the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.live: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(8)
        scope["state"] = scope.get("state") or {}
        scope["state"]["request_id"] = request_id
        scope["path"] = path = _tidy(scope["path"])
        scope["state"]["method"] = method = scope["method"]
        if method == "OPTIONS":
            scope["method"] = cast("Any", "TRACE")  # a method that no path has
        began = time.perf_counter()
        answered = 0

        async def tell(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                message["headers"] = _headers(message["status"], message["headers"], scope, path)
            await send(message)

        task = asyncio.current_task()
        if task is not None:
            self.live.add(task)
        try:
            await self._app(scope, receive, tell)
        finally:
            if task is not None:
                self.live.discard(task)
            log.info(
                "%s %s %d",
                method,
                _loggable(path),
                answered,
                extra={"ms": round((time.perf_counter() - began) * 1000, 1), "request_id": request_id},
            )


def _tidy(path: str) -> str:
    """One slash between segments and none at the end."""
    return re.sub(r"/{2,}", "/", path).rstrip("/") or "/"


def _loggable(path: str) -> str:
    """The path on one line, whatever was sent, not too long, and without a token."""
    return _TOKEN.sub("vd_***", path.encode("unicode_escape").decode())[:_LONGEST_PATH]


def _headers(status: int, headers: Any, scope: HTTPScope, path: str) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"status"]
    if is_api(path):
        kept = [(name, value) for name, value in kept if name.lower() != b"content-type" or _is_text(value)]
        if status == HTTPStatus.NO_CONTENT:
            kept.append((b"content-type", b"application/octet-stream"))
        elif not any(name.lower() == b"content-type" for name, _ in kept):
            kept.append((b"content-type", _JSON))
        kept.append((b"status", f"{status} {_NAMES.get(status) or HTTPStatus(status).phrase}".encode()))
        kept += scope["state"].get("limit_headers", ())
    kept.append((b"x-request-id", scope["state"]["request_id"].encode()))
    return kept


def _is_text(content_type: bytes) -> bool:
    return content_type.startswith(b"text/plain")
