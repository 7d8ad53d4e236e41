"""The body of a request, stricter than the framework: JSON, an object, at most 64 KiB, or a 400.

Whatever is wrong with a body is the sender's to mend, so nothing here ends in a 500 or a 413.
"""

import asyncio
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from vectordash.wire.errors import BadRequest

LONGEST_BODY = 65_536
"""Bytes."""
BODY_WITHIN = 20
"""Seconds that a client has to send a body; an unfinished one would hold a place."""


class StrictRequest(Request[Any, Any, Any]):
    """A request whose body is what the contract says, or refused."""

    async def body(self) -> bytes:
        """Read the body whole."""
        try:
            async with asyncio.timeout(BODY_WITHIN):
                body = await super().body()
        except TimeoutError as error:
            raise BadRequest(f"The body did not arrive within {BODY_WITHIN} s.") from error
        except RequestEntityTooLarge as error:
            raise BadRequest(f"The body is over {LONGEST_BODY // 1024} KiB.") from error
        except InternalServerException as error:
            raise BadRequest("The body was cut off.") from error
        if not body:
            raise BadRequest("The request has no body: send a JSON object.")
        return body

    async def json(self) -> Any:
        """Decode the body: an object, whose values are checked by the handler's struct."""
        self._demand_json()
        try:
            value = msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise BadRequest(f"The body is not valid JSON: {_plain(error)}.") from error
        if not isinstance(value, dict):
            raise BadRequest("The body is not a JSON object: send `{…}`.")
        return value

    def _demand_json(self) -> None:
        content_type, options = self.content_type
        if not content_type:
            raise BadRequest("The body has no `Content-Type`; send `Content-Type: application/json`.")
        if content_type != "application/json":
            raise BadRequest(
                f"The body's `Content-Type` is “{content_type}”; send `Content-Type: application/json`."
            )
        charset = options.get("charset", "utf-8")
        if charset.lower() not in {"utf-8", "utf8"}:
            raise BadRequest(f"The body's charset is “{charset}”; JSON is sent as UTF-8.")


def _plain(error: Exception) -> str:
    """Say in a few words what the decoder found."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    found = str(error).removeprefix("JSON is malformed: ").partition(" - at ")[0]
    return found[:1].lower() + found[1:]
