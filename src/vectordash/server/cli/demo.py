"""The first start on one's own computer: an account, a token and listed GPUs, ready to be tried.

Only an empty store gets them. `demo.env` in the data folder holds what the README's lines need: where it is
gone, or its token no longer valid, a new one is made and the old one revoked; where the port has changed,
only the address is written.
"""

import os
import shlex
from decimal import Decimal
from pathlib import Path

from sqlalchemy import Connection

from vectordash.server.accounts import service as accounts
from vectordash.server.accounts import store as users
from vectordash.server.accounts.tokens import hash_of
from vectordash.server.clock import UNLIMITED, Clock
from vectordash.server.db.session import Store
from vectordash.server.machines import listing
from vectordash.server.machines import store as machines
from vectordash.server.settings import Settings

EMAIL = "demo@localhost"

_NAME = "demo.env"
_PRICES = {"1080 ti": Decimal("0.64"), "Titan V": Decimal("0.85"), "Tesla V100": Decimal("0.69")}
"""Dollars an hour, as in the published reference."""
_PRICE = Decimal("0.50")
"""Of any other type."""


def prepare(store: Store, clock: Clock, settings: Settings) -> Path | None:
    """Make what is missing of the demo; gives the file to source, or None where there is no demo account."""
    if not store.ask(users.all_users):
        store.change(_first_start, clock)
    if store.ask(users.user_id_of, EMAIL) is None:
        return None
    path = settings.data / _NAME
    known = _read(path)
    token = known.get("VECTORDASH_TOKEN", "")
    if store.ask(users.caller, hash_of(token), clock(), UNLIMITED) is None:
        token = store.change(_new_token, clock)
    wanted = {
        "VECTORDASH_BASE_URL": settings.base_url,
        "VECTORDASH_TOKEN": token,
        "VECTORDASH_GPU": _rentable(store, known.get("VECTORDASH_GPU")),
    }
    if wanted != known:
        _write(path, wanted)
    return path


def _first_start(connection: Connection, clock: Clock) -> None:
    """Make the account, and offer every card of this computer."""
    now = clock()
    accounts.add_user(connection, now, EMAIL)
    for gpu in machines.all_gpus(connection):
        listing.offer(connection, now, [gpu.id], price=_PRICES.get(gpu.type, _PRICE))


def _new_token(connection: Connection, clock: Clock) -> str:
    now = clock()
    for token in users.all_tokens(connection, users.user_id_of(connection, EMAIL)):
        if token.name == _NAME and token.revoked_at is None:
            accounts.revoke_token(connection, now, token.id)
    _, made = accounts.issue_token(connection, now, EMAIL, name=_NAME)
    return made


def _rentable(store: Store, known: str | None) -> str:
    """Give a type that is listed here; the one of last time if it still is."""
    listed = [gpu.type for gpu in store.ask(machines.all_gpus) if gpu.listed and gpu.present]
    if known in listed:
        return str(known)
    return listed[0] if listed else ""


def _read(path: Path) -> dict[str, str]:
    try:
        words = shlex.split(path.read_text(), comments=True)
    except (FileNotFoundError, ValueError):
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _write(path: Path, values: dict[str, str]) -> None:
    """Write the file whole or not at all, 0600 from the start."""
    partial = path.with_suffix(".new")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        for name, value in values.items():
            file.write(f"export {name}={shlex.quote(value)}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
