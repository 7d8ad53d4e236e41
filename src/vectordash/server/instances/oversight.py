"""What the operator asks of everybody's instances: the list, and what is behind one. Nothing is changed.

Apart from `store.py`, for neither a renter's request nor the reconciler ever asks this:
`vdserver instance`, `vdserver gpu list` and `vdserver doctor` do.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from vectordash.server.accounts.tables import users
from vectordash.server.instances import store
from vectordash.server.instances.tables import attempts, instances
from vectordash.server.machines.tables import clusters, machines


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt, released or not."""

    number: int
    gpu_id: int
    machine: str
    cluster: str
    driver_name: str
    address: str
    port: int
    made_at: datetime
    deadline: datetime | None
    failed_at: datetime | None
    failure: str | None
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Which instance has something."""

    key: str
    name: str
    email: str
    ended_at: datetime | None

    def __str__(self) -> str:
        return f"{self.key} “{self.name}” of {self.email}"


@dataclass(frozen=True, slots=True)
class Happened:
    """An event."""

    time: datetime
    kind: str
    attempt: int | None
    message: str


@dataclass(frozen=True, slots=True)
class History:
    """What the list leaves out of an instance."""

    image: str
    until: datetime
    ends_at: datetime | None
    due_at: datetime | None
    lease_until: datetime | None
    failures: int
    attempts: list[Tried]
    events: list[Happened]


def history(connection: Connection, key: str) -> History:
    """What is there to know of this instance, from its first attempt on?"""
    row = connection.execute(
        select(
            instances.c.image,
            instances.c.until,
            instances.c.ends_at,
            instances.c.due_at,
            instances.c.lease_until,
            instances.c.failures,
        ).where(instances.c.key == key)
    )
    tried = connection.execute(
        select(
            attempts.c.number,
            attempts.c.gpu_id,
            machines.c.name.label("machine"),
            clusters.c.name.label("cluster"),
            attempts.c.driver_name,
            attempts.c.address,
            attempts.c.port,
            attempts.c.made_at,
            attempts.c.deadline,
            attempts.c.failed_at,
            attempts.c.failure,
            attempts.c.released_at,
        )
        .join_from(attempts, machines, attempts.c.machine_id == machines.c.id)
        .join(clusters, machines.c.cluster_id == clusters.c.id)
        .where(attempts.c.instance == key)
        .order_by(attempts.c.number)
    )
    return History(
        **row.mappings().one(),
        attempts=[Tried(**one) for one in tried.mappings()],
        events=[Happened(*event) for event in store.events_of(connection, key)],
    )


def holders(connection: Connection) -> dict[int, str]:
    """Which instance holds which GPU, be it only until it is removed? By the GPU's id: the key."""
    query = select(attempts.c.gpu_id, attempts.c.instance).where(attempts.c.released_at.is_(None))
    return dict(iter(connection.execute(query)))


def holder_of_gpu(connection: Connection, gpu_id: int) -> Holder | None:
    """Which instance holds this GPU?"""
    return _holder(connection, attempts.c.gpu_id == gpu_id, attempts.c.released_at.is_(None))


def holder_of_port(connection: Connection, machine_id: int, address: str, port: int) -> Holder | None:
    """Which instance holds this port of a machine's address?"""
    return _holder(
        connection,
        attempts.c.machine_id == machine_id,
        attempts.c.bound_address == address,
        attempts.c.port == port,
        attempts.c.released_at.is_(None),
    )


def instance_called(connection: Connection, name: str) -> Holder | None:
    """Which instance has this driver name, key or name? A live one first, then the newest."""
    meant = or_(attempts.c.driver_name == name, instances.c.key == name, instances.c.name == name)
    return _holder(connection, meant)


def _holder(connection: Connection, *which: ColumnElement[bool]) -> Holder | None:
    row = connection.execute(
        select(instances.c.key, instances.c.name, users.c.email, instances.c.ended_at)
        .join_from(attempts, instances, attempts.c.instance == instances.c.key)
        .join(users, instances.c.user_id == users.c.id)
        .where(*which)
        .order_by(instances.c.ended_at.is_not(None), instances.c.created_at.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Holder(*row)


def held_ports(connection: Connection, cluster_name: str) -> set[int]:
    """Which SSH ports of this cluster are held by attempts?"""
    query = (
        select(attempts.c.port)
        .join_from(attempts, machines, attempts.c.machine_id == machines.c.id)
        .join(clusters, machines.c.cluster_id == clusters.c.id)
        .where(clusters.c.name == cluster_name, attempts.c.released_at.is_(None))
    )
    return set(connection.execute(query).scalars())


def stuck(connection: Connection, before: datetime) -> list[str]:
    """Which instances have been due since before then, under no lease that still holds at that time?"""
    query = (
        select(instances.c.key)
        .where(
            instances.c.due_at <= before,
            or_(instances.c.lease_until.is_(None), instances.c.lease_until <= before),
        )
        .order_by(instances.c.due_at)
    )
    return list(connection.execute(query).scalars())


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
