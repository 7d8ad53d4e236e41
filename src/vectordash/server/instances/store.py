"""Every question that a renter's request asks of the instances, and the changes that it makes.

What the reconciler asks and records stands in `leases.py`, `sightings.py` and `outcomes.py`.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from vectordash.server.instances.charge import Use
from vectordash.server.instances.lifecycle import ERRORS, EndReason
from vectordash.server.instances.tables import attempts, events, idempotency, instances, key_pairs
from vectordash.wire.errors import AmbiguousName, InstanceNotFound


@dataclass(frozen=True, slots=True)
class Row:
    """An instance with the attempt that it stands on."""

    key: str
    name: str
    gpu_type: str
    image: str
    price: Decimal
    until: datetime
    created_at: datetime
    active_at: datetime | None
    ended_at: datetime | None
    error: bool
    unseen_since: datetime | None
    free_seconds: int
    pem: bytes | None
    public_key: str
    number: int
    gpu_id: int
    machine_id: int
    address: str
    port: int
    host_public_key: str
    cpu: str
    ram: int
    storage: int


def _rows() -> Select[*tuple[Any, ...]]:
    return select(
        instances.c.key,
        instances.c.name,
        instances.c.gpu_type,
        instances.c.image,
        instances.c.price,
        instances.c.until,
        instances.c.created_at,
        instances.c.active_at,
        instances.c.ended_at,
        instances.c.error,
        instances.c.unseen_since,
        instances.c.free_seconds,
        instances.c.pem,
        instances.c.public_key,
        attempts.c.number,
        attempts.c.gpu_id,
        attempts.c.machine_id,
        attempts.c.address,
        attempts.c.port,
        attempts.c.host_public_key,
        attempts.c.cpu,
        attempts.c.ram,
        attempts.c.storage,
    ).join_from(
        instances,
        attempts,
        (attempts.c.instance == instances.c.key) & (attempts.c.number == instances.c.attempt),
    )


def live(connection: Connection, user_id: int) -> list[Row]:
    """Which instances of this user have not ended? Newest first."""
    query = (
        _rows()
        .where(instances.c.user_id == user_id, instances.c.ended_at.is_(None))
        .order_by(instances.c.created_at.desc(), instances.c.key)
    )
    return [Row(**row) for row in connection.execute(query).mappings()]


def find(connection: Connection, user_id: int, key_or_name: str) -> Row:
    """Which instance does this user mean? By its key, or by its name if it is live.

    Raises `InstanceNotFound`, also for another user's, and `AmbiguousName`.
    """
    if "\0" in key_or_name:  # which no key has, and a database may refuse
        raise InstanceNotFound(key_or_name)
    own = _rows().where(instances.c.user_id == user_id)
    row = connection.execute(own.where(instances.c.key == key_or_name)).mappings().one_or_none()
    if row is not None:
        return Row(**row)
    live_one = own.where(instances.c.name == key_or_name, instances.c.ended_at.is_(None))
    named = [Row(**one) for one in connection.execute(live_one).mappings()]
    if not named:
        raise InstanceNotFound(key_or_name)
    if len(named) > 1:
        raise AmbiguousName(key_or_name, [one.key for one in named])
    return named[0]


def unchanged(connection: Connection, keys: set[str]) -> set[str]:
    """Which of these are still pending? One question for everybody who waits."""
    query = select(instances.c.key).where(
        instances.c.key.in_(keys), instances.c.active_at.is_(None), instances.c.ended_at.is_(None)
    )
    return set(connection.execute(query).scalars())


def rename(connection: Connection, key: str, name: str) -> bool:
    """Give a live instance another name; False if it has ended."""
    renamed = connection.execute(
        update(instances)
        .where(instances.c.key == key, instances.c.ended_at.is_(None))
        .values(name=name)
        .returning(instances.c.key)
    )
    return renamed.scalar() is not None


def end(connection: Connection, key: str, at: datetime, why: EndReason, now: datetime) -> bool:
    """End an instance: the one writer of `ended_at`. False if it has ended already.

    The clock stops at `at`; the reconciler is to remove what runs of it.
    """
    ended = connection.execute(
        update(instances)
        .where(instances.c.key == key, instances.c.ended_at.is_(None))
        .values(
            ended_at=at,
            end_reason=why,
            error=why in ERRORS,
            due_at=now,
            generation=instances.c.generation + 1,
        )
        .returning(instances.c.key)
    )
    return ended.scalar() is not None


# --- events ------------------------------------------------------------------------------------------------


def tell(
    connection: Connection, key: str, now: datetime, kind: str, message: str, attempt: int | None = None
) -> None:
    """Write what happened to an instance, for its renter."""
    connection.execute(
        insert(events).values(instance=key, time=now, kind=kind, attempt=attempt, message=message)
    )


def events_of(connection: Connection, key: str) -> list[tuple[datetime, str, int | None, str]]:
    """What happened to this instance? The last 1,000, oldest first: (time, kind, attempt, message)."""
    query = (
        select(events.c.time, events.c.kind, events.c.attempt, events.c.message)
        .where(events.c.instance == key)
        .order_by(events.c.id.desc())
        .limit(1000)
    )
    rows = reversed(connection.execute(query).all())
    return [(time, kind, attempt, message) for time, kind, attempt, message in rows]


# --- renting ---------------------------------------------------------------------------------------------


def promised_to(
    connection: Connection, user_id: int, idempotency_key: str, since: datetime
) -> tuple[str, str] | None:
    """Which instance does this key of this user stand for, and what was the hash of the body?"""
    query = select(idempotency.c.instance, idempotency.c.body_hash).where(
        idempotency.c.user_id == user_id,
        idempotency.c.key == idempotency_key,
        idempotency.c.created_at > since,
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (row[0], row[1])


def keep_promise(
    connection: Connection, user_id: int, idempotency_key: str, body_hash: str, instance: str, now: datetime
) -> None:
    """Let this key stand for this instance; an older use that has run out gives way."""
    connection.execute(
        delete(idempotency).where(idempotency.c.user_id == user_id, idempotency.c.key == idempotency_key)
    )
    connection.execute(
        insert(idempotency).values(
            user_id=user_id, key=idempotency_key, body_hash=body_hash, instance=instance, created_at=now
        )
    )


def forget_promises(connection: Connection, before: datetime) -> None:
    """Drop the idempotency keys that have run out."""
    connection.execute(delete(idempotency).where(idempotency.c.created_at <= before))


def held_by(connection: Connection, user_id: int) -> int:
    """How many live instances, each with one GPU, does this user have?"""
    query = select(func.count()).where(instances.c.user_id == user_id, instances.c.ended_at.is_(None))
    return connection.execute(query).scalar_one()


def used_since(connection: Connection, user_id: int, since: datetime) -> list[Use]:
    """What did this user's instances use since then? Each as if it had become active then at the earliest."""
    query = select(
        instances.c.active_at,
        instances.c.ended_at,
        instances.c.error,
        instances.c.unseen_since,
        instances.c.free_seconds,
    ).where(
        instances.c.user_id == user_id,
        instances.c.active_at.is_not(None),
        func.coalesce(instances.c.ended_at, since) >= since,
    )
    return [
        Use(Decimal(0), max(active_at, since), ended_at, error, unseen_since, free_seconds)
        for active_at, ended_at, error, unseen_since, free_seconds in connection.execute(query)
    ]


def next_time_limit(connection: Connection, gpu_type: str) -> datetime | None:
    """When does the next instance on a GPU of this type reach its own limit of hours?"""
    query = select(func.min(instances.c.ends_at)).where(
        instances.c.gpu_type == gpu_type, instances.c.ended_at.is_(None)
    )
    return connection.execute(query).scalar()


# --- key pairs made ahead ----------------------------------------------------------------------------------


def take_pair(connection: Connection) -> tuple[bytes, str] | None:
    """Take a key pair from the stock: (sealed private key, public key). None if it is empty."""
    oldest = select(key_pairs.c.id).order_by(key_pairs.c.id).limit(1).with_for_update(skip_locked=True)
    row = connection.execute(
        delete(key_pairs)
        .where(key_pairs.c.id == oldest.scalar_subquery())
        .returning(key_pairs.c.pem, key_pairs.c.public_key)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def add_pairs(connection: Connection, pairs: list[tuple[bytes, str]]) -> None:
    """Put key pairs into the stock."""
    connection.execute(insert(key_pairs), [{"pem": pem, "public_key": public} for pem, public in pairs])


def pairs_left(connection: Connection) -> int:
    """How many key pairs are in the stock?"""
    return connection.execute(select(func.count()).select_from(key_pairs)).scalar_one()
