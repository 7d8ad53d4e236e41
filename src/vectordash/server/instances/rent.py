"""What a POST does to the store: one transaction, all or nothing.

In the contract's order: the request makes sense (400), a replay of its `Idempotency-Key` is answered with
the instance as it is (also when its date has passed meanwhile), the profile is complete (407), the account's
limits (400), an offer (504). Then the GPU and a port are held by the first attempt, and the instance exists,
`pending` and due. What happens next is the reconciler's.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy import Connection, insert

from vectordash.server import audit
from vectordash.server.accounts.service import Accounts
from vectordash.server.accounts.store import Caller, lock_user
from vectordash.server.catalogue.store import find_image, find_type
from vectordash.server.clock import UNLIMITED, as_written, how_long
from vectordash.server.instances import store
from vectordash.server.instances.charge import charge
from vectordash.server.instances.holding import Seat, hold
from vectordash.server.instances.tables import instances
from vectordash.server.machines import offers
from vectordash.server.machines.offers import Offer
from vectordash.server.settings import Settings
from vectordash.server.vault import Vault
from vectordash.wire.errors import GpuUnavailable, InvalidField, KeyReused, LimitReached, OfferChanged

KEPT = timedelta(hours=24)
"""How long an `Idempotency-Key` stands for its instance."""
_RETRY = 60
"""Seconds after which a renter may ask again where no end is known."""
_LONGEST_RETRY = 3600
"""Seconds; others may give theirs back sooner than they must."""


class StockEmpty(Exception):
    """No key pair was ready: make one outside the transaction and rent again."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A parsed and checked request."""

    name: str
    gpu: str
    image: str
    date: datetime | None
    body_hash: str
    idempotency_key: str | None
    max_price: Decimal | None


@dataclass(frozen=True, slots=True)
class Renting:
    """What `rent` needs besides the wish."""

    settings: Settings
    accounts: Accounts
    vault: Vault


def rent(
    connection: Connection,
    how: Renting,
    caller: Caller,
    wish: Wish,
    now: datetime,
    spare: tuple[bytes, str] | None = None,
) -> tuple[str, bool]:
    """Rent a GPU: the instance's key, and whether it is a replay's. `spare`: a sealed key pair to use.

    Raises refusals of the contract, and `StockEmpty`.
    """
    # One POST of an account at a time, or two could pass a limit, or use an `Idempotency-Key`, together.
    lock_user(connection, caller.user_id)
    gpu = find_type(connection, wish.gpu)
    image = find_image(connection, wish.image)
    if wish.idempotency_key is not None:
        promised = store.promised_to(connection, caller.user_id, wish.idempotency_key, now - KEPT)
        if promised is not None:
            return _replay(promised, wish), True
    if wish.date is not None and wish.date <= now:
        raise InvalidField({"date": f"it lies in the past; it is now {as_written(now)} (UTC)"})
    how.accounts.demand_complete(caller)
    ends_at = _within_limits(connection, how.settings, caller, now)
    offer = _offer(connection, how.settings, gpu, wish, now)
    pair = spare or store.take_pair(connection)
    if pair is None:
        raise StockEmpty
    key = _create(connection, caller, wish, offer, image, now, pair, ends_at)
    hold(connection, how.vault, now, key, 1, Seat(offer.gpu_id, offer.machine_id))
    if wish.idempotency_key is not None:
        store.keep_promise(connection, caller.user_id, wish.idempotency_key, wish.body_hash, key, now)
    promise = f"GPU {offer.gpu_id} ({offer.type}) at {offer.price:.2f} an hour, {how_long(offer.until)}"
    store.tell(connection, key, now, "rented", f"Rented {promise}.", 1)
    audit.record(connection, now, caller.email, "rent", f"{key} “{wish.name}”: {promise}")
    return key, False


def _replay(promised: tuple[str, str], wish: Wish) -> str:
    key, body_hash = promised
    if not secrets.compare_digest(body_hash, wish.body_hash):
        raise KeyReused
    return key


def _offer(connection: Connection, settings: Settings, gpu: str, wish: Wish, now: datetime) -> Offer:
    soon = now + timedelta(hours=settings.least_hours)
    until = soon if wish.date is None else max(soon, min(wish.date, UNLIMITED))
    cheapest = wish.date is not None
    offer = offers.best_offer(connection, gpu, now, at_least_until=until, cheapest=cheapest)
    if offer is None:
        raise _unavailable(connection, gpu, wish.date, now, soon)
    if wish.max_price is not None and offer.price > wish.max_price:
        raise OfferChanged(gpu, f"{offer.price:.2f}", f"{wish.max_price}", how_long(offer.until))
    return offer


def _unavailable(
    connection: Connection, gpu: str, date: datetime | None, now: datetime, soon: datetime
) -> GpuUnavailable:
    free = offers.free_types(connection, now, soon)
    shorter = next((offer for offer in free if offer.type == gpu), None)
    others = [
        f"{offer.type} ({offer.hourly_price:.2f} an hour, {_until(offer.max_availability)})"
        for offer in free
        if offer.type != gpu
    ]
    sentences = []
    if date is not None and shorter is not None:
        sentences.append(f"One is free {_until(shorter.max_availability)}.")
    sentences.append(f"Also free: {', '.join(others)}." if others else "No other type is free either.")
    ends = [
        end
        for end in (offers.next_reservation_end(connection, gpu, now), store.next_time_limit(connection, gpu))
        if end is not None and end > now
    ]
    if ends:
        sentences.append(f"A {gpu} may become free at {as_written(min(ends))} (UTC).")
    else:
        sentences.append(f"When a {gpu} becomes free is not known; try again in a minute.")
    wait = min(_LONGEST_RETRY, int((min(ends) - now).total_seconds()) + 1) if ends else _RETRY
    wanted = "" if date is None else f" and {how_long(date)}"
    return GpuUnavailable(gpu, wanted, " ".join(sentences), wait)


def _until(availability: str) -> str:
    return "without end" if availability == "unlimited" else f"until {availability} (UTC)"


def _within_limits(
    connection: Connection, settings: Settings, caller: Caller, now: datetime
) -> datetime | None:
    """Check the account's limits; gives when the instance will end by itself. Raises `LimitReached`."""
    own = caller.limits
    at_once = settings.gpus_at_once if own.gpus_at_once is None else own.gpus_at_once
    if at_once and (held := store.held_by(connection, caller.user_id)) >= at_once:
        raise LimitReached(
            f"Your account's limit of GPUs at once is {at_once}, and it holds {held}.", "End an instance"
        )
    a_month = settings.gpu_hours_a_month if own.gpu_hours_a_month is None else own.gpu_hours_a_month
    if a_month and (used := _hours_this_month(connection, caller, now)) >= a_month:
        raise LimitReached(
            f"Your account's limit of GPU-hours a calendar month is {a_month}, and {used} are used.",
            "Wait until the month is over (UTC)",
        )
    hours = settings.hours_an_instance if own.hours_an_instance is None else own.hours_an_instance
    return now + timedelta(hours=hours) if hours else None


def _hours_this_month(connection: Connection, caller: Caller, now: datetime) -> int:
    """The hours that are charged since the month began, whatever they cost."""
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    used = store.used_since(connection, caller.user_id, month)
    return sum(charge(use, now)[0] for use in used)


def _create(
    connection: Connection,
    caller: Caller,
    wish: Wish,
    offer: Offer,
    image: str,
    now: datetime,
    pair: tuple[bytes, str],
    ends_at: datetime | None,
) -> str:
    key = secrets.token_hex(6)
    pem, public_key = pair
    connection.execute(
        insert(instances).values(
            key=key,
            user_id=caller.user_id,
            name=wish.name,
            gpu_type=offer.type,
            image=image,
            price=offer.price,
            until=offer.until,
            created_at=now,
            ends_at=ends_at,
            pem=pem,
            public_key=public_key,
            attempt=1,
            due_at=now,
        )
    )
    return key
