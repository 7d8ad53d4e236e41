"""Data folders that versions of this program left behind (`store/folders/make.py`), opened by this one."""

import json
import tarfile
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from cloud import NOON, Cloud, HandClock
from vectordash.server import app
from vectordash.server.accounts.tables import users
from vectordash.server.audit import audit
from vectordash.server.db.presence import Presence
from vectordash.server.db.session import Store
from vectordash.server.drivers.fake import FakeDriver, simple_machine
from vectordash.server.settings import Settings

REVISIONS = ("0001", "0002")
_HERE = Path(__file__).parent / "store" / "folders"


def unpack(revision: str, folder: Path) -> Path:
    """Have the data folder of a revision, as it was left."""
    with tarfile.open(_HERE / f"{revision}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    data = folder / "data"
    data.chmod(0o700)
    return data


def notes(data: Path) -> dict[str, Any]:
    """What is to know of it beside its store."""
    found: dict[str, Any] = json.loads((data / "notes.json").read_text())
    return found


async def reopen(settings: Settings, store: Store, token: str) -> Cloud:
    """Let this version serve it, an hour later, on a cluster where everything is gone."""
    clock = HandClock()
    clock.move(hours=4)
    cards = ["NVIDIA GeForce GTX 1080 Ti"] * 3 + ["NVIDIA TITAN V"] * 2
    driver = FakeDriver([simple_machine("m1", *cards, vram=12)])
    keys = app.open_vault(settings, store)
    cluster = await app.join(store, clock, "fake", driver, (20000, 20999))
    presence = Presence(store, clock, "up")
    presence.enter()
    plane = app.build(settings, store, keys, [cluster], clock, presence)
    return Cloud(plane, driver, cluster, clock, token)


def add_pair(connection: Connection, name: str, ballast: int = 0) -> None:
    """Write two rows that belong together: an account, and a line of the audit."""
    email = f"{name}@example.org"
    connection.execute(insert(users).values(email=email, created_at=NOON))
    values = {"time": NOON, "who": email, "did": "x" * ballast, "what": "pair"}
    connection.execute(insert(audit).values(values))


def fill_up(connection: Connection, rows: int, size: int) -> None:
    """Make a store large, so that what is done to it takes a while."""
    lines = [{"time": NOON, "who": "x", "did": "y" * size, "what": str(number)} for number in range(rows)]
    connection.execute(insert(audit), lines)


def emails(connection: Connection) -> list[str]:
    """Whose accounts are there?"""
    return list(connection.execute(select(users.c.email).order_by(users.c.email)).scalars())
