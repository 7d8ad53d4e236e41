"""What the reconciler asks of the instances and records of them: leases, sightings, and each step's result.

Whoever works on an instance holds its lease; every record is guarded by the lease's version, so one that has
lost its lease writes nothing. `generation` tells whether something new was desired meanwhile.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, and_, case, func, or_, select, update

from vectordash.server.accounts.tables import users
from vectordash.server.instances import holding, store
from vectordash.server.instances.holding import Seat
from vectordash.server.instances.lifecycle import EndReason, after_failure
from vectordash.server.instances.tables import attempts, instances
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
    deadline: datetime | None
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


@dataclass(frozen=True, slots=True)
class Standing:
    """What a cluster should have: one attempt that is not released."""

    driver_name: str
    instance: str
    resting: bool
    """Active, in sight, and nothing is due: it should be running."""
    unseen: bool
    due_at: datetime | None


def due(connection: Connection, now: datetime, most: int) -> list[str]:
    """Which instances are due and under nobody's lease?"""
    query = (
        select(instances.c.key)
        .where(
            instances.c.due_at.is_not(None),
            instances.c.due_at <= now,
            or_(instances.c.lease_until.is_(None), instances.c.lease_until <= now),
        )
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


def lease(connection: Connection, key: str, now: datetime, until: datetime) -> Work | None:
    """Take an instance to work on, unless somebody else has it."""
    taken = connection.execute(
        update(instances)
        .where(
            instances.c.key == key,
            instances.c.due_at.is_not(None),
            or_(instances.c.lease_until.is_(None), instances.c.lease_until <= now),
        )
        .values(lease_until=until, lease_version=instances.c.lease_version + 1)
        .returning(instances.c.lease_version)
    ).scalar()
    return None if taken is None else _work(connection, key)


def break_leases(connection: Connection) -> None:
    """End all leases: their holders are known to be dead, since only one server may use this store."""
    connection.execute(update(instances).where(instances.c.lease_until.is_not(None)).values(lease_until=None))


def _work(connection: Connection, key: str) -> Work:
    row = connection.execute(
        select(
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
        ).where(instances.c.key == key)
    )
    held = connection.execute(
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
        .where(attempts.c.instance == key, attempts.c.released_at.is_(None))
        .order_by(attempts.c.number.desc())
    )
    return Work(**row.mappings().one(), attempts=tuple(Attempt(**one) for one in held.mappings()))


def reload(connection: Connection, work: Work) -> Work | None:
    """What is desired and recorded now? None if the lease is lost."""
    fresh = _work(connection, work.key)
    return fresh if fresh.version == work.version else None


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


def _held(connection: Connection, work: Work) -> bool:
    """Tell whether the lease is still ours, and keep it until the transaction ends."""
    ours = connection.execute(
        select(instances.c.key)
        .where(instances.c.key == work.key, instances.c.lease_version == work.version)
        .with_for_update()
    )
    return ours.scalar() is not None


def begin(connection: Connection, attempt_id: int, deadline: datetime) -> datetime:
    """Set by when a login must work, at the first step of an attempt; gives what is set."""
    connection.execute(
        update(attempts)
        .where(attempts.c.id == attempt_id, attempts.c.deadline.is_(None))
        .values(deadline=deadline)
    )
    return connection.execute(
        select(func.coalesce(attempts.c.deadline, deadline)).where(attempts.c.id == attempt_id)
    ).scalar_one()


def activate(connection: Connection, work: Work, attempt: Attempt, now: datetime) -> bool:
    """A login worked: billing begins. False if the instance has ended, or the lease is lost."""
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
    if active is not None:
        message = "A login worked; billing has begun."
        store.tell(connection, work.key, now, "active", message, attempt.number)
    return active is not None


def recover(connection: Connection, work: Work, attempt: Attempt, now: datetime, how: str) -> bool:
    """It is well again: the time out of sight is free."""
    if work.unseen_since is None or work.ended_at is not None or not _held(connection, work):
        return False
    gap = max(0, int((now - work.unseen_since).total_seconds()))
    connection.execute(
        update(instances)
        .where(instances.c.key == work.key, instances.c.ended_at.is_(None))
        .values(unseen_since=None, lost_at=None, restarts=0, free_seconds=instances.c.free_seconds + gap)
    )
    message = f"{how}; the {gap} s until then are not charged."
    store.tell(connection, work.key, now, "recovered", message, attempt.number)
    return True


def restart_failed(connection: Connection, work: Work, attempt: Attempt, why: str, now: datetime) -> int:
    """A stopped instance did not start again; gives how often in a row."""
    if not _held(connection, work):
        return work.restarts
    connection.execute(
        update(instances).where(instances.c.key == work.key).values(restarts=instances.c.restarts + 1)
    )
    message = f"It had stopped and did not start again: {why}."
    store.tell(connection, work.key, now, "restart_failed", message, attempt.number)
    return work.restarts + 1


def lose(connection: Connection, work: Work, attempt: Attempt, why: str, now: datetime) -> bool:
    """It was active and is lost: ended when it was last seen well."""
    if not _held(connection, work):
        return False
    machines.suspect(connection, attempt.gpu_id, f"{work.key} was lost on it: {why}")
    last_well = work.unseen_since or now
    return _end(connection, work, max(last_well, work.active_at or last_well), "lost", f"Lost: {why}.", now)


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
    if not _held(connection, work) or attempt.failed:
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
        update(instances)
        .where(instances.c.key == work.key, instances.c.ended_at.is_(None))
        .values(attempt=number, price=lowest)
    )
    store.tell(
        connection, work.key, now, "placed", f"Trying GPU {seat.gpu_id}, at {lowest:.2f} an hour.", number
    )


def move_port(connection: Connection, vault: Vault, work: Work, attempt: Attempt, now: datetime) -> None:
    """Its port is busy on the machine: another one, on the same GPU."""
    if not _held(connection, work):
        return
    try:
        port = holding.move_port(connection, attempt.id, attempt.machine_id)
    except PortsExhausted as error:
        fail(connection, vault, work, attempt, error.message, now, transient=False)
        return
    message = f"Port {attempt.port} is in use on the machine by another program; trying {port}."
    store.tell(connection, work.key, now, "port_moved", message, attempt.number)


def release(connection: Connection, vault: Vault, work: Work, attempt: Attempt, now: datetime) -> None:
    """Nothing of an attempt is left on its cluster: let go of GPU and port; erase the key at the end."""
    if not _held(connection, work):
        return
    holding.release(connection, attempt.id, attempt.gpu_id, now)
    again = connection.execute(select(attempts.c.again).where(attempts.c.id == attempt.id)).scalar_one()
    if again and attempt.number == work.attempt and work.ended_at is None:
        seat = Seat(attempt.gpu_id, attempt.machine_id)
        _go_on(connection, vault, work, seat, work.price, now)
    connection.execute(
        update(instances)
        .where(
            instances.c.key == work.key,
            instances.c.ended_at.is_not(None),
            ~select(attempts.c.id)
            .where(attempts.c.instance == work.key, attempts.c.released_at.is_(None))
            .exists(),
        )
        .values(pem=None)
    )
    store.tell(
        connection, work.key, now, "released", "Removed from its machine; the GPU is free.", attempt.number
    )


def _end(
    connection: Connection, work: Work, at: datetime, why: EndReason, message: str, now: datetime
) -> bool:
    ended = store.end(connection, work.key, at, why, now)
    if ended:
        store.tell(connection, work.key, now, "ended", message)
    return ended


def _gpus_tried(connection: Connection, key: str) -> list[int]:
    """On which GPUs was it tried? One entry an attempt."""
    query = select(attempts.c.gpu_id).where(attempts.c.instance == key).order_by(attempts.c.number)
    return list(connection.execute(query).scalars())


# --- what a pass over a cluster asks and records -----------------------------------------------------------


def standing(connection: Connection, cluster_id: int) -> list[Standing]:
    """What should this cluster have?"""
    resting = and_(
        instances.c.active_at.is_not(None),
        instances.c.ended_at.is_(None),
        attempts.c.number == instances.c.attempt,
    )
    query = (
        select(
            attempts.c.driver_name,
            attempts.c.instance,
            resting,
            instances.c.unseen_since.is_not(None),
            instances.c.due_at,
        )
        .join_from(attempts, instances, attempts.c.instance == instances.c.key)
        .join(hosts, attempts.c.machine_id == hosts.c.id)
        .where(hosts.c.cluster_id == cluster_id, attempts.c.released_at.is_(None))
    )
    return [Standing(*row) for row in connection.execute(query)]


def known(connection: Connection, driver_names: Collection[str]) -> set[str]:
    """Which of these names does the store know, released or not?"""
    query = select(attempts.c.driver_name).where(attempts.c.driver_name.in_(driver_names))
    return set(connection.execute(query).scalars())


def miss(
    connection: Connection,
    keys: Collection[str],
    last_well: datetime,
    now: datetime,
    *,
    lost_at: datetime,
    look_at: datetime,
) -> None:
    """These active instances are out of sight since `last_well`: look at each then, and give it up then."""
    for key in keys:
        missed = connection.execute(
            update(instances)
            .where(
                instances.c.key == key,
                instances.c.ended_at.is_(None),
                instances.c.active_at.is_not(None),
                instances.c.unseen_since.is_(None),
            )
            .values(
                unseen_since=case(
                    (instances.c.active_at > last_well, instances.c.active_at), else_=last_well
                ),
                lost_at=lost_at,
                due_at=look_at,
                generation=instances.c.generation + 1,
            )
            .returning(instances.c.attempt)
        ).scalar()
        if missed is not None:
            message = "It is out of sight. It stays yours, and this time is not charged."
            store.tell(connection, key, now, "unseen", message, missed)


def nudge(connection: Connection, keys: Collection[str], now: datetime) -> None:
    """Have these looked at now."""
    connection.execute(
        update(instances)
        .where(instances.c.key.in_(keys))
        .values(due_at=now, generation=instances.c.generation + 1)
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
