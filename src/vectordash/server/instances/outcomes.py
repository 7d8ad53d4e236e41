"""What a step of the reconciler came to, recorded: each under its lease, each a transaction of its own."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, select, update

from vectordash.server.instances import holding, store
from vectordash.server.instances.holding import Seat
from vectordash.server.instances.leases import Attempt, Work, finish, held
from vectordash.server.instances.lifecycle import EndReason, after_failure
from vectordash.server.instances.tables import attempts, instances
from vectordash.server.machines import offers
from vectordash.server.machines import store as machines
from vectordash.server.vault import Vault
from vectordash.wire.errors import PortsExhausted

_NO_PORT = "Every SSH port of the machine is taken"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a start failed."""

    why: str
    transient: bool
    """The same GPU may do better the next time."""
    of_gpu: bool = True
    """The GPU, or its machine, may be at fault: it is not offered until it was seen well again."""


def activate(connection: Connection, work: Work, attempt: Attempt, now: datetime) -> bool:
    """A login worked: billing begins, unless the instance has ended or the lease is lost.

    True if nothing is left to be done: the lease is given back.
    """
    active = connection.execute(
        update(instances)
        .where(
            instances.c.key == work.key,
            instances.c.lease_version == work.version,
            instances.c.lease_until.is_not(None),
            instances.c.ended_at.is_(None),
            instances.c.active_at.is_(None),
        )
        .values(active_at=now, well_since=now)
        .returning(instances.c.key)
    ).scalar()
    if active is None:
        return False
    machines.trust(connection, attempt.gpu_id)
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
    if held(connection, work) != "wanted":
        return
    gap = 0 if work.unseen_since is None else max(0, int((now - work.unseen_since).total_seconds()))
    recovered = connection.execute(
        update(instances)
        # A record that is repeated because its answer was lost finds the gap counted already.
        .where(instances.c.key == work.key, instances.c.unseen_since.is_not_distinct_from(work.unseen_since))
        .values(
            unseen_since=None,
            lost_at=None,
            restarts=0,
            well_since=now,
            free_seconds=instances.c.free_seconds + gap,
        )
        .returning(instances.c.key)
    )
    if recovered.scalar() is None:
        return
    message = f"{how}; the {gap} s until then are not charged."
    store.tell(connection, work.key, now, "recovered", message, attempt.number)


def restart_failed(connection: Connection, work: Work, attempt: Attempt, why: str, now: datetime) -> None:
    """A stopped instance did not start again."""
    if held(connection, work) != "wanted":
        return
    counted = connection.execute(
        update(instances)
        .where(instances.c.key == work.key, instances.c.restarts == work.restarts)
        .values(restarts=work.restarts + 1)
        .returning(instances.c.key)
    )
    if counted.scalar() is None:  # recorded before, though the answer was lost
        return
    message = f"It had stopped and did not start again: {why}."
    store.tell(connection, work.key, now, "restart_failed", message, attempt.number)


def lose(connection: Connection, work: Work, attempt: Attempt, why: str, now: datetime) -> None:
    """It was active and is lost: ended when it was last seen well."""
    if held(connection, work) != "wanted":
        return
    machines.suspect(connection, attempt.gpu_id, f"{work.key} was lost on it: {why}")
    last_well = work.unseen_since or _last_well(connection, work, attempt, now)
    _end(connection, work, max(last_well, work.active_at or last_well), "lost", f"Lost: {why}.", now)


def _last_well(connection: Connection, work: Work, attempt: Attempt, now: datetime) -> datetime:
    """When was one seen well that no pass has missed yet? When the last pass was made, or it came up."""
    came_up = connection.execute(select(instances.c.well_since).where(instances.c.key == work.key)).scalar()
    passed = machines.last_seen(connection, attempt.cluster_id)
    return min(now, max((moment for moment in (came_up, passed) if moment is not None), default=now))


def fail(
    connection: Connection,
    vault: Vault,
    work: Work,
    attempt: Attempt,
    failure: Failure,
    now: datetime,
) -> None:
    """A start failed: on to another GPU, to the same once more, or to the end. Never charged."""
    hold = held(connection, work)
    if hold == "lost" or attempt.failed:
        return
    tried = _gpus_tried(connection, work.key)
    other = offers.best_offer(connection, work.gpu_type, now, at_least_until=work.until, without=set(tried))
    then = after_failure(
        attempts=len(tried),
        transient=failure.transient,
        same_tried_again=len(set(tried)) < len(tried),
        other_free=other is not None,
    )
    failed = connection.execute(
        update(attempts)
        .where(attempts.c.id == attempt.id, attempts.c.failed_at.is_(None))
        .values(failed_at=now, failure=failure.why, again=then == "same")
        .returning(attempts.c.id)
    )
    if failed.scalar() is None:  # recorded before, though the answer was lost
        return
    if failure.of_gpu:
        machines.suspect(connection, attempt.gpu_id, f"{work.key} did not start on it: {failure.why}")
    message = f"GPU {attempt.gpu_id} did not start it: {failure.why}."
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
    except PortsExhausted:
        _end(connection, work, now, "not_started", f"{_NO_PORT}; it ends and costs nothing.", now)
        return
    connection.execute(
        update(instances).where(instances.c.key == work.key).values(attempt=number, price=lowest)
    )
    store.tell(
        connection, work.key, now, "placed", f"Trying GPU {seat.gpu_id}, at {lowest:.2f} an hour.", number
    )


def abandon(connection: Connection, work: Work, attempt: Attempt, why: str, now: datetime) -> None:
    """No more tries: it ends and costs nothing. The attempt holds its GPU until nothing is left of it."""
    if held(connection, work) != "wanted":
        return
    connection.execute(update(attempts).where(attempts.c.id == attempt.id).values(again=False))
    _end(connection, work, now, "not_started", f"Given up: {why}. It costs nothing.", now)


def move_port(connection: Connection, vault: Vault, work: Work, attempt: Attempt, now: datetime) -> None:
    """Its port is busy on the machine: another one, on the same GPU."""
    if held(connection, work) != "wanted":
        return
    try:
        port = holding.move_port(connection, attempt.id, attempt.machine_id)
    except PortsExhausted:
        fail(connection, vault, work, attempt, Failure(_NO_PORT, transient=False, of_gpu=False), now)
        return
    message = f"Port {attempt.port} is in use on the machine by another program; trying {port}."
    store.tell(connection, work.key, now, "port_moved", message, attempt.number)


def release(connection: Connection, vault: Vault, work: Work, attempt: Attempt, now: datetime) -> bool:
    """Nothing of an attempt is left on its cluster: let go of GPU and port; erase the key at the end.

    True if nothing is left to be done: the lease is given back.
    """
    hold = held(connection, work)
    if hold == "lost":
        return False
    if not holding.release(connection, attempt.id, attempt.gpu_id, now):
        return False
    message = "Removed from its machine; the GPU is free."
    store.tell(connection, work.key, now, "released", message, attempt.number)
    if hold == "ended":
        left = select(attempts.c.id).where(attempts.c.instance == work.key, attempts.c.released_at.is_(None))
        erased = update(instances).where(instances.c.key == work.key, ~left.exists()).values(pem=None)
        connection.execute(erased)
        return _finish_if_last(connection, work, now)
    if attempt.again and attempt.number == work.attempt:
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
