"""What the operator decides about GPUs: whether each is offered, its price, until when, for whom it is kept.

Each deed takes GPUs by their ids, or all, and is checked whole before anything changes; its audit line stands
in the same transaction. A rented GPU may be changed like any other: its instance keeps the price and the
promise that it was rented with. `vdserver gpu` calls this; `best_offer` in `store.py` sees the result.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sqlalchemy import Connection

from vectordash.server import audit
from vectordash.server.clock import UNLIMITED, as_written
from vectordash.server.machines import store
from vectordash.server.machines.store import GpuRow
from vectordash.wire.errors import BadRequest

State = Literal[
    "absent",  # its machine is offline, or does not report it
    "suspect",  # something failed on it: withheld until it was seen well again
    "rented",  # an attempt holds it
    "unlisted",  # the operator does not offer it
    "reserved",  # the operator keeps it for itself, for a while
    "free",  # none of these
]
Chosen = Collection[int] | Literal["all"]

MOST = Decimal(10_000)
"""Dollars an hour: beyond any card's price, so more is a slip of the hand."""
_CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Done:
    """What a deed came to."""

    gpus: list[GpuRow]
    """The chosen ones, as they are now."""
    remarks: list[str] = field(default_factory=list)
    """Sentences on what the operator may not have thought of."""


def state(gpu: GpuRow, now: datetime) -> State:
    """Tell in a word why a GPU is or is not offered; of several reasons the first of `State`."""
    reasons: list[tuple[State, bool]] = [
        ("absent", not gpu.present),
        ("suspect", bool(gpu.suspect_why)),
        ("rented", not gpu.free),
        ("unlisted", not gpu.listed),
        ("reserved", gpu.reserved_until is not None and gpu.reserved_until > now),
    ]
    return next((word for word, holds in reasons if holds), "free")


def set_price(connection: Connection, now: datetime, chosen: Chosen, price: Decimal) -> Done:
    """Ask this much an hour from now on."""
    gpus = _chosen(connection, chosen)
    _demand_price(price)
    return _change(connection, now, gpus, {"price": price}, "price gpu", f"at {price:.2f}")


def set_availability(connection: Connection, now: datetime, chosen: Chosen, until: datetime) -> Done:
    """Promise these GPUs until then, `UNLIMITED` for ever."""
    gpus = _chosen(connection, chosen)
    _demand_future(until, now)
    what = f"until {as_written(until)}"
    return _change(connection, now, gpus, {"available_until": until}, "promise gpu", what)


def offer(
    connection: Connection,
    now: datetime,
    chosen: Chosen,
    *,
    price: Decimal | None = None,
    until: datetime | None = None,
) -> Done:
    """Put GPUs on the market. One that never got a price needs one: nothing is given away by oversight."""
    gpus = _chosen(connection, chosen)
    values: dict[str, object] = {"listed": True}
    if price is not None:
        _demand_price(price)
        values["price"] = price
    elif unpriced := [gpu.id for gpu in gpus if not gpu.price and not gpu.listed]:
        raise BadRequest(
            f"{_named(unpriced)} has no price. Say what an hour costs, 0 if nothing: "
            f"vdserver gpu list {_written(unpriced)} --price 0.64"
        )
    if until is not None:
        _demand_future(until, now)
        values["available_until"] = until
    elif over := [gpu.id for gpu in gpus if gpu.available_until <= now]:
        raise BadRequest(
            f"{_named(over)} was available until a time that has passed. Say until when: "
            f"vdserver gpu list {_written(over)} --until unlimited"
        )
    return _change(connection, now, gpus, values, "list gpu", "")


def withdraw(connection: Connection, now: datetime, chosen: Chosen) -> Done:
    """Take GPUs off the market; who has one keeps it."""
    return _change(connection, now, _chosen(connection, chosen), {"listed": False}, "unlist gpu", "")


def reserve(connection: Connection, now: datetime, chosen: Chosen, until: datetime) -> Done:
    """Keep GPUs for the operator until then."""
    gpus = _chosen(connection, chosen)
    _demand_future(until, now)
    if until >= UNLIMITED:
        raise BadRequest("A reservation ends some time. To offer a GPU no more: vdserver gpu unlist ID")
    what = f"until {as_written(until)}"
    return _change(connection, now, gpus, {"reserved_until": until}, "reserve gpu", what)


def unreserve(connection: Connection, now: datetime, chosen: Chosen) -> Done:
    """End a reservation before its time."""
    gpus = _chosen(connection, chosen)
    return _change(connection, now, gpus, {"reserved_until": None}, "unreserve gpu", "")


def clear(connection: Connection, now: datetime, chosen: Chosen) -> Done:
    """Trust suspect GPUs again; remarks on what still keeps one from being offered."""
    gpus = _chosen(connection, chosen)
    store.clear(connection, [gpu.id for gpu in gpus])
    audit.record(connection, now, "operator", "clear gpu", _written([gpu.id for gpu in gpus]))
    strays = store.held_by_orphans(connection)
    remarks = []
    for gpu in gpus:
        if gpu.id in strays:
            remarks.append(
                f"GPU {gpu.id} is held by {strays[gpu.id]}, which this store does not know: the next look at "
                "its cluster withholds it again. See: vdserver instance orphans"
            )
        elif not gpu.present:
            remarks.append(f"GPU {gpu.id} is absent: {gpu.machine} is offline, or does not report it.")
        elif not gpu.free:
            remarks.append(f"GPU {gpu.id} is still held by an attempt: it is offered once that is removed.")
        elif not gpu.suspect_why:
            remarks.append(f"GPU {gpu.id} was not suspect.")
    return Done(_again(connection, gpus), remarks)


def _chosen(connection: Connection, chosen: Chosen) -> list[GpuRow]:
    known = store.all_gpus(connection)
    if not known:
        raise BadRequest("No GPU is known yet. They are found by: vdserver up")
    if chosen == "all":
        return known
    if missing := sorted(set(chosen) - {gpu.id for gpu in known}):
        raise BadRequest(
            f"There is no {_named(missing)}. Nothing was changed. They are shown by: vdserver gpu list"
        )
    return [gpu for gpu in known if gpu.id in chosen]


def _change(
    connection: Connection, now: datetime, gpus: list[GpuRow], values: dict[str, object], did: str, how: str
) -> Done:
    ids = [gpu.id for gpu in gpus]
    store.change_listing(connection, ids, values)
    audit.record(connection, now, "operator", did, f"{_written(ids)} {how}".strip())
    rented = [gpu.id for gpu in gpus if not gpu.free]
    remarks = (
        [f"Rented now: {_named(rented)}. What was rented keeps its price and promise."] if rented else []
    )
    return Done(_again(connection, gpus), remarks)


def _again(connection: Connection, gpus: list[GpuRow]) -> list[GpuRow]:
    """Read these anew."""
    ids = {gpu.id for gpu in gpus}
    return [gpu for gpu in store.all_gpus(connection) if gpu.id in ids]


def _demand_price(price: Decimal) -> None:
    if not 0 <= price <= MOST or price != price.quantize(_CENT):
        raise BadRequest(f"A price is 0 to {MOST:.2f} dollars an hour, in whole cents; {price} is not.")


def _demand_future(until: datetime, now: datetime) -> None:
    if until <= now:
        raise BadRequest(f"{as_written(until)} has passed; it is now {as_written(now)} (UTC).")


def _named(ids: list[int]) -> str:
    return f"GPU {', '.join(map(str, ids))}"


def _written(ids: list[int]) -> str:
    return " ".join(map(str, ids))
