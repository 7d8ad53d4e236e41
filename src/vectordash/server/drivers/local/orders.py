"""What the driver and the program of an instance say to each other, once, at its start.

The driver writes `Orders` to the program's standard input, the only way in for secrets: nothing of them is
on disk unsealed, in arguments or in an environment. The program answers with one `Word` and hears no more. It
runs on through upgrades of the server, so whatever else the two share (the lock, the mark, the folder's
layout) may only be added to.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

VERSION = 1
MARK = "VECTORDASH_INSTANCE"
"""The variable in the environment of every process of an instance: `<driver name>@<identity>`."""


@dataclass(frozen=True, slots=True)
class Orders:
    """All that the program needs to know."""

    user: str
    """Who may log in."""
    host_key: str
    authorized_keys: list[str]
    hostname: str
    home: str
    """As the program sees it."""
    environ: dict[str, str]
    """Of every shell and command."""
    greeting: str
    """A line shown when a shell starts."""
    sandboxed: bool
    listener: int
    """File descriptor of the bound socket. The driver binds it, so a busy port is known at once."""
    answer: int
    """File descriptor of the pipe for the one word."""
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Word:
    """The program's answer."""

    said: Literal["ready", "failed"]
    reason: str = ""


def encode(message: Orders | Word) -> bytes:
    """Write it as JSON; by the standard library, for a renter waits for the program's imports."""
    return json.dumps(asdict(message)).encode()


def orders(data: bytes) -> Orders:
    """Read orders; of another version than ours they do not fit and raise `TypeError`."""
    return Orders(**json.loads(data))


def word(data: bytes) -> Word:
    """Read the answer."""
    return Word(**json.loads(data))
