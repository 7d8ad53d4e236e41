"""The body of an answer: JSON whose `Decimal`s are numbers, digit for digit."""

from typing import Any

import msgspec
from litestar import Response

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class JsonResponse(Response[Any]):
    """An answer whose `Decimal`s are JSON numbers, digit for digit."""

    def render(self, content: Any, media_type: str, enc_hook: Any = None) -> bytes:
        """Encode structs as JSON; text stays text."""
        if isinstance(content, str):
            return content.encode()
        return b"" if content is None else _ENCODER.encode(content)
