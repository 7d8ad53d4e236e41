"""The body of a request, stricter than the framework: JSON, an object, at most 64 KiB, or a 400.

Whatever is wrong with a body is the sender's to mend, so nothing here ends in a 500 or a 413.
"""

from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from vectordash.wire.errors import BadRequest

LONGEST_BODY = 65_536
"""Bytes."""


class StrictRequest(Request[Any, Any, Any]):
    """A request whose body is what the contract says, or refused."""

    async def body(self) -> bytes:
        """Read the body whole."""
        try:
            return await super().body()
        except RequestEntityTooLarge as error:
            raise BadRequest(f"The body is over {LONGEST_BODY // 1024} KiB.") from error
        except InternalServerException as error:
            raise BadRequest("The body was cut off.") from error

    async def json(self) -> Any:
        """Decode the body: an object, whose values are checked by the handler's struct."""
        content_type, _ = self.content_type
        if content_type != "application/json":
            raise BadRequest(
                f"The body's `Content-Type` is “{content_type}”; send `Content-Type: application/json`."
            )
        try:
            value = msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise BadRequest(f"The body is not valid JSON: {error}.") from error
        if not isinstance(value, dict):
            raise BadRequest("The body is not a JSON object: send `{…}`.")
        return value
