"""How log lines look: for people, or one JSON object a line. To stderr, never a secret in it."""

import logging
import sys
import time

import msgspec

from vectordash.server.settings import Settings

_EXTRA = ("request_id", "ms")


class _People(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{when} {record.levelname.lower():<7} {record.getMessage()}"
        extra = " ".join(f"{name}={getattr(record, name)}" for name in _EXTRA if hasattr(record, name))
        if extra:
            line += f"  {extra}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _EXTRA if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def set_up(settings: Settings) -> None:
    """Send what the server has to say to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log == "json" else _People())
    root = logging.getLogger("vectordash")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
