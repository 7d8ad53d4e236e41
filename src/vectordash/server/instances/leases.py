"""Leases: the right of one worker to work on one instance, and what it loads to decide.

An instance is *due* when it should be looked at; whoever works on it holds its lease: for a while, while its
process lives (`db/presence.py`), and with a version. Every record is guarded by the version, so one that has
lost its lease writes nothing. `generation` tells whether something new was desired meanwhile, so that no
wake-up is lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sqlalchemy import ColumnElement, Connection, bindparam, case, func, or_, select, update

from vectordash.server.db.presence import processes
from vectordash.server.instances.tables import attempts, instances
from vectordash.server.machines.tables import gpus, machines


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that still holds its GPU."""

    id: int
    number: int
    gpu_id: int
    gpu_uuid: str
    machine_id: int
    machine: str
    cluster_id: int
    driver_name: str
    hostname: str
    bound_address: str
    probe_address: str
    port: int
    host_key: bytes | None
    host_public_key: str
    cores: int
    ram: int
    storage: int
    deadline: datetime | None
    """By when a login must have worked; None while its cluster is not one of ours."""
    again: bool
    """Failed, and the same GPU is to be tried once more."""
    failed: bool


@dataclass(frozen=True, slots=True)
class Work:
    """An instance under a lease, with all that a step needs to know."""

    key: str
    version: int
    generation: int
    gpu_type: str
    image: str
    price: Decimal
    until: datetime
    active_at: datetime | None
    ended_at: datetime | None
    unseen_since: datetime | None
    lost_at: datetime | None
    restarts: int
    failures: int
    pem: bytes | None
    public_key: str
    attempt: int
    attempts: tuple[Attempt, ...]


def due(connection: Connection, now: datetime, most: int) -> list[str]:
    """Which instances are due and under nobody's lease?"""
    query = (
        select(instances.c.key)
        .where(instances.c.due_at <= now, _unleased(now))
        .order_by(instances.c.due_at)
        .limit(most)
    )
    return list(connection.execute(query).scalars())


def look_at_all(connection: Connection, now: datetime) -> None:
    """Look now at whatever is to be looked at later: it may have been put off by a clock that was ahead."""
    connection.execute(update(instances).where(instances.c.due_at > now).values(due_at=now))


def next_due(connection: Connection) -> datetime | None:
    """When is the next instance due, or its lease over?"""
    later = case(
        (instances.c.lease_until > instances.c.due_at, instances.c.lease_until), else_=instances.c.due_at
    )
    query = select(func.min(later)).where(instances.c.due_at.is_not(None))
    return connection.execute(query).scalar()


@dataclass(frozen=True, slots=True)
class Term:
    """For whom and how long leases are taken."""

    holder: str
    """The process."""
    now: datetime
    until: datetime
    deadlines: Mapping[int, datetime]
    """By when an attempt that begins now must have come to a login, on each cluster."""


def lease(connection: Connection, term: Term, keys: Sequence[str]) -> list[Work]:
    """Take those of these instances that are due to work on, except what somebody else has or just takes.

    None at all if the holder was taken for dead meanwhile: its leases would be void.
    """
    lives = (
        select(processes.c.id).where(processes.c.id == term.holder).with_for_update(read=True, key_share=True)
    )
    if connection.execute(lives).scalar() is None:
        return []
    open_ones = (
        select(instances.c.key)
        .where(instances.c.key.in_(keys), instances.c.due_at <= term.now, _unleased(term.now))
        .with_for_update(skip_locked=True, key_share=True)
    )
    free = list(connection.execute(open_ones).scalars())
    connection.execute(
        update(instances)
        .where(instances.c.key.in_(free))
        .values(
            lease_until=term.until,
            lease_holder=term.holder,
            lease_version=instances.c.lease_version + 1,
        )
    )
    return [_work(connection, key, term.deadlines) for key in free]


def _unleased(now: datetime) -> ColumnElement[bool]:
    return or_(
        instances.c.lease_until.is_(None),
        instances.c.lease_until <= now,
        instances.c.lease_holder.not_in(select(processes.c.id)),
    )


_INSTANCE = select(
    instances.c.key,
    instances.c.lease_version.label("version"),
    instances.c.generation,
    instances.c.gpu_type,
    instances.c.image,
    instances.c.price,
    instances.c.until,
    instances.c.active_at,
    instances.c.ended_at,
    instances.c.unseen_since,
    instances.c.lost_at,
    instances.c.restarts,
    instances.c.failures,
    instances.c.pem,
    instances.c.public_key,
    instances.c.attempt,
).where(instances.c.key == bindparam("instance"))
_HELD = (
    select(
        attempts.c.id,
        attempts.c.number,
        attempts.c.gpu_id,
        gpus.c.uuid.label("gpu_uuid"),
        attempts.c.machine_id,
        machines.c.name.label("machine"),
        machines.c.cluster_id,
        attempts.c.driver_name,
        attempts.c.hostname,
        attempts.c.bound_address,
        attempts.c.probe_address,
        attempts.c.port,
        attempts.c.host_key,
        attempts.c.host_public_key,
        attempts.c.cores,
        attempts.c.ram,
        attempts.c.storage,
        attempts.c.deadline,
        attempts.c.again,
        attempts.c.failed_at.is_not(None).label("failed"),
    )
    .join_from(attempts, gpus, attempts.c.gpu_id == gpus.c.id)
    .join(machines, attempts.c.machine_id == machines.c.id)
    .where(attempts.c.instance == bindparam("instance"), attempts.c.released_at.is_(None))
    .order_by(attempts.c.number.desc())
)


def _work(connection: Connection, key: str, deadlines: Mapping[int, datetime]) -> Work:
    """Load an instance; attempts that nobody has begun begin now."""
    row = connection.execute(_INSTANCE, {"instance": key}).mappings().one()
    holding = [dict(one) for one in connection.execute(_HELD, {"instance": key}).mappings()]
    for one in holding:
        latest = deadlines.get(one["cluster_id"])
        # A deadline that lies further off than a new one would was set by a clock that was ahead.
        if latest is not None and (one["deadline"] is None or one["deadline"] > latest):
            one["deadline"] = latest
            begun = update(attempts).where(attempts.c.id == one["id"]).values(deadline=one["deadline"])
            connection.execute(begun)
    return Work(**row, attempts=tuple(Attempt(**one) for one in holding))


def reload(connection: Connection, work: Work, deadlines: Mapping[int, datetime]) -> Work | None:
    """What is desired and recorded now? None if the lease is lost."""
    return None if held(connection, work) == "lost" else _work(connection, work.key, deadlines)


def finish(
    connection: Connection, work: Work, due_at: datetime | None, now: datetime, *, came_to: bool
) -> None:
    """Give a lease back. What was desired meanwhile is due at once; `came_to` ends a back-off."""
    connection.execute(
        update(instances)
        .where(*_ours(work))
        .values(
            lease_until=None,
            lease_holder=None,
            due_at=case((instances.c.generation == work.generation, due_at), else_=now),
            failures=0 if came_to else instances.c.failures + 1,
        )
    )


def _ours(work: Work) -> tuple[ColumnElement[bool], ...]:
    """Of this very lease, and it was not given back: then a record is repeated whose answer was lost."""
    return (
        instances.c.key == work.key,
        instances.c.lease_version == work.version,
        instances.c.lease_until.is_not(None),
    )


Hold = Literal[
    "wanted",  # the lease is ours, and the instance goes on
    "ended",  # the lease is ours, but the instance has ended, perhaps a moment ago
    "lost",  # somebody else took over: nothing may be written
]


def held(connection: Connection, work: Work) -> Hold:
    """Tell whether the lease is still ours and what for, and keep it so until the transaction ends."""
    ours = connection.execute(
        select(instances.c.ended_at).where(*_ours(work)).with_for_update(key_share=True)
    ).one_or_none()
    if ours is None:
        return "lost"
    return "wanted" if ours.ended_at is None else "ended"
