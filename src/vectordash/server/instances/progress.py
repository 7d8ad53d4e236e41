"""What the reconciler asks of the instances and records of them: leases, sightings, and each step's result.

Whoever works on an instance holds its lease; every record is guarded by the lease's version, so one that has
lost its lease writes nothing. `generation` tells whether something new was desired meanwhile.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    update,
)

from vectordash.server.accounts.tables import users
from vectordash.server.clock import UNLIMITED
from vectordash.server.instances import holding, store
from vectordash.server.instances.holding import Seat
from vectordash.server.instances.lifecycle import EndReason, after_failure
from vectordash.server.instances.tables import attempts, events, instances
from vectordash.server.machines import store as machines
from vectordash.server.machines.tables import gpus as cards
from vectordash.server.machines.tables import machines as hosts
from vectordash.server.vault import Vault
from vectordash.wire.errors import PortsExhausted


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
    bound_address: str
    probe_address: str
    port: int
    host_key: bytes | None
    host_public_key: str
    cores: int
    ram: int
    storage: int
    deadline: datetime
    failed: bool


@dataclass(frozen=True, slots=True)
class Work:
    """An instance under a lease, with all that a step needs to know."""

    key: str
    version: int
    generation: int
    name: str
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


class Standing(NamedTuple):
    """What a cluster should have: one attempt that is not released."""

    driver_name: str
    instance: str
    resting: bool
    """Active, and the attempt is the one that it stands on: it should be running."""
    unseen: bool
    """Live, and reported out of sight."""
    put_off: bool
    """Nobody will look at it before it counts as lost."""


def due(connection: Connection, now: datetime, most: int) -> list[str]:
    """Which instances are due and under nobody's lease?"""
    query = (
        select(instances.c.key)
        .where(instances.c.due_at <= now, _unleased(now))
        .order_by(instances.c.due_at)
        .limit(most)
    )
    return list(connection.execute(query).scalars())


def next_due(connection: Connection) -> datetime | None:
    """When is the next instance due, or its lease over?"""
    later = case(
        (instances.c.lease_until > instances.c.due_at, instances.c.lease_until), else_=instances.c.due_at
    )
    query = select(func.min(later)).where(instances.c.due_at.is_not(None))
    return connection.execute(query).scalar()


def lease(
    connection: Connection, key: str, now: datetime, until: datetime, deadlines: Mapping[int, datetime]
) -> Work | None:
    """Take an instance that is due to work on, unless somebody else has it.

    `deadlines`: by when an attempt that begins now must have come to a login, on each cluster.
    """
    taken = connection.execute(
        update(instances)
        .where(instances.c.key == key, instances.c.due_at <= now, _unleased(now))
        .values(lease_until=until, lease_version=instances.c.lease_version + 1)
        .returning(instances.c.lease_version)
    ).scalar()
    return None if taken is None else _work(connection, key, deadlines)


def _unleased(now: datetime) -> ColumnElement[bool]:
    return or_(instances.c.lease_until.is_(None), instances.c.lease_until <= now)


def break_leases(connection: Connection) -> None:
    """End all leases: their holders are known to be dead, since only one server may use this store."""
    connection.execute(update(instances).where(instances.c.lease_until.is_not(None)).values(lease_until=None))


_INSTANCE = select(
    instances.c.key,
    instances.c.lease_version.label("version"),
    instances.c.generation,
    instances.c.name,
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
        cards.c.uuid.label("gpu_uuid"),
        attempts.c.machine_id,
        hosts.c.name.label("machine"),
        hosts.c.cluster_id,
        attempts.c.driver_name,
        attempts.c.bound_address,
        attempts.c.probe_address,
        attempts.c.port,
        attempts.c.host_key,
        attempts.c.host_public_key,
        attempts.c.cores,
        attempts.c.ram,
        attempts.c.storage,
        attempts.c.deadline,
        attempts.c.failed_at.is_not(None).label("failed"),
    )
    .join_from(attempts, cards, attempts.c.gpu_id == cards.c.id)
    .join(hosts, attempts.c.machine_id == hosts.c.id)
    .where(attempts.c.instance == bindparam("instance"), attempts.c.released_at.is_(None))
    .order_by(attempts.c.number.desc())
)


def _work(connection: Connection, key: str, deadlines: Mapping[int, datetime]) -> Work:
    """Load an instance; attempts that nobody has begun begin now."""
    row = connection.execute(_INSTANCE, {"instance": key}).mappings().one()
    held = [dict(one) for one in connection.execute(_HELD, {"instance": key}).mappings()]
    for one in held:
        if one["deadline"] is None:
            one["deadline"] = deadlines.get(one["cluster_id"], UNLIMITED)
            begun = update(attempts).where(attempts.c.id == one["id"]).values(deadline=one["deadline"])
            connection.execute(begun)
    return Work(**row, attempts=tuple(Attempt(**one) for one in held))


def reload(connection: Connection, work: Work, deadlines: Mapping[int, datetime]) -> Work | None:
    """What is desired and recorded now? None if the lease is lost."""
    return None if _held(connection, work) == "lost" else _work(connection, work.key, deadlines)


def finish(
    connection: Connection, work: Work, due_at: datetime | None, now: datetime, *, came_to: bool
) -> None:
    """Give a lease back. What was desired meanwhile is due at once; `came_to` ends a back-off."""
    connection.execute(
        update(instances)
        .where(instances.c.key == work.key, instances.c.lease_version == work.version)
        .values(
            lease_until=None,
            due_at=case((instances.c.generation == work.generation, due_at), else_=now),
            failures=0 if came_to else instances.c.failures + 1,
        )
    )


# --- what a step came to -----------------------------------------------------------------------------------

Hold = Literal[
    "wanted",  # the lease is ours, and the instance goes on
    "ended",  # the lease is ours, but the instance has ended, perhaps a moment ago
    "lost",  # somebody else took over: nothing may be written
]


def _held(connection: Connection, work: Work) -> Hold:
    """Tell whether the lease is still ours and what for, and keep it so until the transaction ends."""
    ours = connection.execute(
        select(instances.c.ended_at)
        .where(instances.c.key == work.key, instances.c.lease_version == work.version)
        .with_for_update()
    ).one_or_none()
    if ours is None:
        return "lost"
    return "wanted" if ours.ended_at is None else "ended"


def activate(connection: Connection, work: Work, attempt: Attempt, now: datetime) -> bool:
    """A login worked: billing begins, unless the instance has ended or the lease is lost.

    True if nothing is left to be done: the lease is given back.
    """
    active = connection.execute(
        update(instances)
        .where(
            instances.c.key == work.key,
            instances.c.lease_version == work.version,
            instances.c.ended_at.is_(None),
            instances.c.active_at.is_(None),
        )
        .values(active_at=now)
        .returning(instances.c.key)
    ).scalar()
    if active is None:
        return False
    message = "A login worked; billing has begun."
    store.tell(connection, work.key, now, "active", message, attempt.number)
    return _finish_if_last(connection, work, now)


def _finish_if_last(connection: Connection, work: Work, now: datetime) -> bool:
    """Give the lease back if this was the only attempt to work on; saves a transaction of its own."""
    if len(work.attempts) > 1:
        return False
    finish(connection, work, None, now, came_to=True)
    return True


def recover(connection: Connection, work: Work, attempt: Attempt, now: datetime, how: str) -> None:
    """It is well again: the time out of sight is free."""
    if _held(connection, work) != "wanted":
        return
    gap = 0 if work.unseen_since is None else max(0, int((now - work.unseen_since).total_seconds()))
    connection.execute(
        update(instances)
        .where(instances.c.key == work.key)
        .values(unseen_since=None, lost_at=None, restarts=0, free_seconds=instances.c.free_seconds + gap)
    )
    message = f"{how}; the {gap} s until then are not charged."
    store.tell(connection, work.key, now, "recovered", message, attempt.number)


def restart_failed(connection: Connection, work: Work, attempt: Attempt, why: str, now: datetime) -> None:
    """A stopped instance did not start again."""
    if _held(connection, work) != "wanted":
        return
    connection.execute(
        update(instances).where(instances.c.key == work.key).values(restarts=instances.c.restarts + 1)
    )
    message = f"It had stopped and did not start again: {why}."
    store.tell(connection, work.key, now, "restart_failed", message, attempt.number)


def lose(connection: Connection, work: Work, attempt: Attempt, why: str, now: datetime) -> None:
    """It was active and is lost: ended when it was last seen well."""
    if _held(connection, work) == "lost":
        return
    machines.suspect(connection, attempt.gpu_id, f"{work.key} was lost on it: {why}")
    last_well = work.unseen_since or now
    _end(connection, work, max(last_well, work.active_at or last_well), "lost", f"Lost: {why}.", now)


def fail(
    connection: Connection,
    vault: Vault,
    work: Work,
    attempt: Attempt,
    why: str,
    now: datetime,
    *,
    transient: bool,
) -> None:
    """A start failed: on to another GPU, to the same once more, or to the end. Never charged."""
    hold = _held(connection, work)
    if hold == "lost" or attempt.failed:
        return
    machines.suspect(connection, attempt.gpu_id, f"{work.key} did not start on it: {why}")
    tried = _gpus_tried(connection, work.key)
    other = machines.best_offer(connection, work.gpu_type, now, at_least_until=work.until, without=set(tried))
    then = after_failure(
        attempts=len(tried),
        transient=transient,
        same_tried_again=len(set(tried)) < len(tried),
        other_free=other is not None,
    )
    connection.execute(
        update(attempts)
        .where(attempts.c.id == attempt.id)
        .values(failed_at=now, failure=why, again=then == "same")
    )
    message = f"GPU {attempt.gpu_id} did not start it: {why}."
    store.tell(connection, work.key, now, "start_failed", message, attempt.number)
    if hold == "ended":  # while it failed: nobody waits for another
        return
    if then == "other" and other is not None:
        _go_on(connection, vault, work, Seat(other.gpu_id, other.machine_id), other.price, now)
    elif then == "end":
        no_more = "No other GPU of this type is free" if other is None else f"{len(tried)} attempts failed"
        _end(connection, work, now, "not_started", f"{no_more}; it ends and costs nothing.", now)


def _go_on(
    connection: Connection, vault: Vault, work: Work, seat: Seat, price: Decimal, now: datetime
) -> None:
    """Put a pending instance on another GPU, at the lower of the promised and its own price."""
    lowest = min(work.price, price)
    number = len(_gpus_tried(connection, work.key)) + 1
    try:
        holding.hold(connection, vault, now, work.key, number, seat)
    except PortsExhausted as error:
        _end(connection, work, now, "not_started", error.message, now)
        return
    connection.execute(
        update(instances).where(instances.c.key == work.key).values(attempt=number, price=lowest)
    )
    store.tell(
        connection, work.key, now, "placed", f"Trying GPU {seat.gpu_id}, at {lowest:.2f} an hour.", number
    )


def move_port(connection: Connection, vault: Vault, work: Work, attempt: Attempt, now: datetime) -> None:
    """Its port is busy on the machine: another one, on the same GPU."""
    if _held(connection, work) != "wanted":
        return
    try:
        port = holding.move_port(connection, attempt.id, attempt.machine_id)
    except PortsExhausted as error:
        fail(connection, vault, work, attempt, error.message, now, transient=False)
        return
    message = f"Port {attempt.port} is in use on the machine by another program; trying {port}."
    store.tell(connection, work.key, now, "port_moved", message, attempt.number)


def release(connection: Connection, vault: Vault, work: Work, attempt: Attempt, now: datetime) -> bool:
    """Nothing of an attempt is left on its cluster: let go of GPU and port; erase the key at the end.

    True if nothing is left to be done: the lease is given back.
    """
    hold = _held(connection, work)
    if hold == "lost":
        return False
    holding.release(connection, attempt.id, attempt.gpu_id, now)
    message = "Removed from its machine; the GPU is free."
    store.tell(connection, work.key, now, "released", message, attempt.number)
    if hold == "ended":
        held = select(attempts.c.id).where(attempts.c.instance == work.key, attempts.c.released_at.is_(None))
        erased = update(instances).where(instances.c.key == work.key, ~held.exists()).values(pem=None)
        connection.execute(erased)
        return _finish_if_last(connection, work, now)
    again = connection.execute(select(attempts.c.again).where(attempts.c.id == attempt.id)).scalar_one()
    if again and attempt.number == work.attempt:
        seat = Seat(attempt.gpu_id, attempt.machine_id)
        _go_on(connection, vault, work, seat, work.price, now)
    return False


def _end(
    connection: Connection, work: Work, at: datetime, why: EndReason, message: str, now: datetime
) -> None:
    if store.end(connection, work.key, at, why, now):
        store.tell(connection, work.key, now, "ended", message)


def _gpus_tried(connection: Connection, key: str) -> list[int]:
    """On which GPUs was it tried? One entry an attempt."""
    query = select(attempts.c.gpu_id).where(attempts.c.instance == key).order_by(attempts.c.number)
    return list(connection.execute(query).scalars())


# --- what a pass over a cluster asks and records -----------------------------------------------------------


def standing(connection: Connection, cluster_id: int) -> list[Standing]:
    """What should this cluster have?"""
    live = instances.c.ended_at.is_(None)
    put_off = or_(instances.c.due_at.is_(None), instances.c.due_at >= instances.c.lost_at)
    query = (
        select(
            attempts.c.driver_name,
            attempts.c.instance,
            and_(live, instances.c.active_at.is_not(None), attempts.c.number == instances.c.attempt),
            and_(live, instances.c.unseen_since.is_not(None)),
            put_off,
        )
        .join_from(attempts, instances, attempts.c.instance == instances.c.key)
        .join(hosts, attempts.c.machine_id == hosts.c.id)
        .where(hosts.c.cluster_id == cluster_id, attempts.c.released_at.is_(None))
    )
    return [Standing(*row) for row in connection.execute(query)]


def unreleased(connection: Connection, cluster_id: int) -> set[str]:
    """Which driver names may there be on this cluster?"""
    query = (
        select(attempts.c.driver_name)
        .join_from(attempts, hosts, attempts.c.machine_id == hosts.c.id)
        .where(hosts.c.cluster_id == cluster_id, attempts.c.released_at.is_(None))
    )
    return set(connection.execute(query).scalars())


def known(connection: Connection, driver_names: Collection[str]) -> set[str]:
    """Which of these names does the store know, released or not?"""
    query = select(attempts.c.driver_name).where(attempts.c.driver_name.in_(driver_names))
    return set(connection.execute(query).scalars())


def miss(
    connection: Connection,
    keys: Sequence[str],
    last_well: datetime,
    now: datetime,
    *,
    lost_at: datetime,
    look_at: datetime,
) -> None:
    """These active instances are out of sight since `last_well`: look at each then, and give it up then."""
    since = case((instances.c.active_at > last_well, instances.c.active_at), else_=last_well)
    message = "It is out of sight. It stays yours, and this time is not charged."
    for some in _some_at_a_time(keys):
        missed = connection.execute(
            update(instances)
            .where(
                instances.c.key.in_(some),
                instances.c.ended_at.is_(None),
                instances.c.active_at.is_not(None),
                instances.c.unseen_since.is_(None),
            )
            .values(
                unseen_since=since,
                lost_at=lost_at,
                due_at=look_at,
                generation=instances.c.generation + 1,
            )
            .returning(instances.c.key.label("instance"), instances.c.attempt)
        ).mappings()
        told = [{**one, "time": now, "kind": "unseen", "message": message} for one in missed]
        if told:
            connection.execute(insert(events), told)


def nudge(connection: Connection, keys: Sequence[str], now: datetime) -> None:
    """Have these looked at now."""
    for some in _some_at_a_time(keys):
        connection.execute(
            update(instances)
            .where(instances.c.key.in_(some))
            .values(due_at=now, generation=instances.c.generation + 1)
        )


def _some_at_a_time(keys: Sequence[str]) -> list[Sequence[str]]:
    """Cut into pieces that a statement can take: a whole cluster may be out of sight at once."""
    return [keys[first : first + 1000] for first in range(0, len(keys), 1000)]


def renew_grace(connection: Connection, cluster_id: int, now: datetime, lost_at: datetime) -> None:
    """Give another grace to those on this cluster whose own has ended while nobody was looking."""
    here = (
        select(attempts.c.instance)
        .join_from(attempts, hosts, attempts.c.machine_id == hosts.c.id)
        .where(hosts.c.cluster_id == cluster_id, attempts.c.released_at.is_(None))
    )
    connection.execute(
        update(instances)
        .where(instances.c.ended_at.is_(None), instances.c.lost_at <= now, instances.c.key.in_(here))
        .values(lost_at=lost_at)
    )


def active_on(connection: Connection, cluster_id: int) -> list[str]:
    """Which active instances are on this cluster, in sight?"""
    query = (
        select(instances.c.key)
        .join_from(
            instances,
            attempts,
            and_(attempts.c.instance == instances.c.key, attempts.c.number == instances.c.attempt),
        )
        .join(hosts, attempts.c.machine_id == hosts.c.id)
        .where(
            hosts.c.cluster_id == cluster_id,
            instances.c.active_at.is_not(None),
            instances.c.ended_at.is_(None),
            instances.c.unseen_since.is_(None),
        )
    )
    return list(connection.execute(query).scalars())


def end_those_over_time(connection: Connection, now: datetime) -> list[str]:
    """End the instances that have reached their account's limit of hours; gives their keys."""
    over = connection.execute(
        select(instances.c.key, instances.c.ends_at).where(
            instances.c.ended_at.is_(None), instances.c.ends_at <= now
        )
    ).all()
    for key, ends_at in over:
        if store.end(connection, key, ends_at, "time_limit", now):
            store.tell(
                connection, key, now, "ended", "Your account's limit of hours an instance was reached."
            )
    return [key for key, _ in over]


# --- for the operator --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overview:
    """An instance, for the operator's list."""

    key: str
    name: str
    email: str
    gpu_type: str
    gpu_id: int
    price: Decimal
    created_at: datetime
    active_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None
    error: bool
    unseen_since: datetime | None
    free_seconds: int
    port: int


def overview(
    connection: Connection, key_or_name: str | None = None, *, ended: bool = False
) -> list[Overview]:
    """Which instances are there, of everybody? Newest first; ended ones if asked for, or by key."""
    query = (
        select(
            instances.c.key,
            instances.c.name,
            users.c.email,
            instances.c.gpu_type,
            attempts.c.gpu_id,
            instances.c.price,
            instances.c.created_at,
            instances.c.active_at,
            instances.c.ended_at,
            instances.c.end_reason,
            instances.c.error,
            instances.c.unseen_since,
            instances.c.free_seconds,
            attempts.c.port,
        )
        .join_from(instances, users, instances.c.user_id == users.c.id)
        .join(
            attempts,
            and_(attempts.c.instance == instances.c.key, attempts.c.number == instances.c.attempt),
        )
        .order_by(instances.c.created_at.desc())
    )
    if key_or_name is not None:
        query = query.where(or_(instances.c.key == key_or_name, instances.c.name == key_or_name))
    elif not ended:
        query = query.where(instances.c.ended_at.is_(None))
    return [Overview(**row) for row in connection.execute(query).mappings()]
