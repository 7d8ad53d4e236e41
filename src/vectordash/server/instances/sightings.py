"""What a pass over a cluster asks of the instances, and records of them: who is in sight, and who is not."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, and_, case, insert, or_, select, update

from vectordash.server.instances.tables import attempts, events, instances
from vectordash.server.machines.tables import machines


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
        .join(machines, attempts.c.machine_id == machines.c.id)
        .where(machines.c.cluster_id == cluster_id, attempts.c.released_at.is_(None))
    )
    return [Standing(*row) for row in connection.execute(query)]


def known(connection: Connection, driver_names: Collection[str]) -> dict[str, bool]:
    """Which of these names does the store know, and is it released? One statement, so of one state."""
    query = select(attempts.c.driver_name, attempts.c.released_at.is_not(None))
    return dict(iter(connection.execute(query.where(attempts.c.driver_name.in_(driver_names)))))


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
    since = case((instances.c.well_since > last_well, instances.c.well_since), else_=last_well)
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
    """Give another grace to those on this cluster whose own has ended while nobody was looking.

    One that would end later than a new one was given by a clock that was ahead, and becomes a new one too.
    """
    here = (
        select(attempts.c.instance)
        .join_from(attempts, machines, attempts.c.machine_id == machines.c.id)
        .where(machines.c.cluster_id == cluster_id, attempts.c.released_at.is_(None))
    )
    connection.execute(
        update(instances)
        .where(
            instances.c.ended_at.is_(None),
            or_(instances.c.lost_at <= now, instances.c.lost_at > lost_at),
            instances.c.key.in_(here),
        )
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
        .join(machines, attempts.c.machine_id == machines.c.id)
        .where(
            machines.c.cluster_id == cluster_id,
            instances.c.active_at.is_not(None),
            instances.c.ended_at.is_(None),
            instances.c.unseen_since.is_(None),
        )
    )
    return list(connection.execute(query).scalars())
