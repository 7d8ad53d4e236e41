"""Every question asked of, and change made to, clusters, machines and GPUs, but the offers (`offers.py`)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    Connection,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from vectordash.server.catalogue.store import type_for_card
from vectordash.server.clock import UNLIMITED
from vectordash.server.db.presence import processes
from vectordash.server.drivers.base import SeenGpu, SeenMachine
from vectordash.server.machines.tables import clusters, gpus, machines, orphans

MOST_FAILURES = 3
"""Failures in a row after which only the operator offers a GPU again."""
_HELD_BY_ORPHAN = (literal(" ") + orphans.c.gpu_uuids + " ").contains(literal(" ") + gpus.c.uuid + " ")
"""The condition that an orphan holds a card."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is needed of a machine to put an instance on one of its GPUs."""

    machine_id: int
    cluster_id: int
    cpu: str
    cores: int
    ram: int
    disk: int
    gpus: int
    """How many cards it has."""
    bound_address: str
    address: str
    probe_address: str
    first_port: int
    last_port: int
    last_given_port: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as it was joined."""

    id: int
    name: str
    driver: str
    identity: str


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One card, for the operator's lists."""

    id: int
    type: str
    model: str
    machine: str
    simulated: bool
    listed: bool
    price: Decimal
    available_until: datetime
    reserved_until: datetime | None
    present: bool
    free: bool
    suspect_why: str


@dataclass(frozen=True, slots=True)
class Card:
    """One card and where it is, for who takes it over as it is."""

    id: int
    type: str
    machine_id: int
    machine: str
    listed: bool
    price: Decimal
    available_until: datetime


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something of ours on a cluster that the store has never heard of."""

    cluster_id: int
    cluster: str
    name: str
    gpus: tuple[str, ...]
    """UUIDs."""
    port: int | None
    found_at: datetime
    spec: bytes | None
    """Sealed; None while its cluster has not told what it was made from."""
    purge: bool


# --- holding ---------------------------------------------------------------------------------------------


def take(connection: Connection, gpu_id: int) -> None:
    """Hold a GPU for an attempt. The attempts' unique index is what makes a double sale impossible."""
    connection.execute(update(gpus).where(gpus.c.id == gpu_id).values(free=False))


def give_back(connection: Connection, gpu_id: int) -> None:
    """Let go of a GPU whose attempt is gone."""
    connection.execute(update(gpus).where(gpus.c.id == gpu_id).values(free=True))


def suspect(connection: Connection, gpu_id: int, why: str) -> None:
    """Keep a GPU from being offered until it was seen well again."""
    connection.execute(
        update(gpus)
        .where(gpus.c.id == gpu_id)
        .values(suspect=True, suspect_why=why, failures=gpus.c.failures + 1)
    )


def trust(connection: Connection, gpu_id: int) -> None:
    """An instance came up on it: whatever failed before is forgotten, but not that an orphan holds it."""
    connection.execute(
        update(gpus)
        .where(gpus.c.id == gpu_id, ~exists().where(_HELD_BY_ORPHAN))
        .values(suspect=False, suspect_why="", failures=0)
    )


def place_of(connection: Connection, machine_id: int) -> Place:
    """What is there to know of a machine before an instance is put on it?

    The machine is locked until the transaction ends, so that two do not take the same port.
    """
    count = select(func.count()).where(gpus.c.machine_id == machines.c.id).scalar_subquery()
    row = connection.execute(
        select(
            machines.c.id.label("machine_id"),
            machines.c.cluster_id,
            machines.c.cpu,
            machines.c.cores,
            machines.c.ram,
            machines.c.disk,
            count.label("gpus"),
            machines.c.bound_address,
            machines.c.address,
            machines.c.probe_address,
            clusters.c.first_port,
            clusters.c.last_port,
            machines.c.last_given_port,
        )
        .join_from(machines, clusters, machines.c.cluster_id == clusters.c.id)
        .where(machines.c.id == machine_id)
        .with_for_update(of=machines, key_share=True)
    )
    return Place(**row.mappings().one())


def note_port(connection: Connection, machine_id: int, port: int) -> None:
    """Remember which port was given last."""
    connection.execute(update(machines).where(machines.c.id == machine_id).values(last_given_port=port))


# --- what was observed -----------------------------------------------------------------------------------


def cluster_named(connection: Connection, name: str) -> Cluster | None:
    """Which cluster bears this name?"""
    query = select(clusters.c.id, clusters.c.name, clusters.c.driver, clusters.c.identity)
    row = connection.execute(query.where(clusters.c.name == name)).one_or_none()
    return None if row is None else Cluster(*row)


def join(
    connection: Connection, now: datetime, name: str, driver: str, identity: str, ports: tuple[int, int]
) -> Cluster:
    """Take a cluster in, or give it as it was joined before."""
    if (known := cluster_named(connection, name)) is not None:
        connection.execute(
            update(clusters).where(clusters.c.id == known.id).values(first_port=ports[0], last_port=ports[1])
        )
        return known
    cluster_id = connection.execute(
        insert(clusters)
        .values(
            name=name,
            driver=driver,
            identity=identity,
            first_port=ports[0],
            last_port=ports[1],
            created_at=now,
        )
        .returning(clusters.c.id)
    ).scalar_one()
    return Cluster(cluster_id, name, driver, identity)


def watcher_of(connection: Connection, cluster_id: int) -> str | None:
    """Which living process makes the passes over this cluster?"""
    query = select(clusters.c.watcher).where(
        clusters.c.id == cluster_id, clusters.c.watcher.in_(select(processes.c.id))
    )
    return connection.execute(query).scalar()


def watch(connection: Connection, cluster_id: int, process: str) -> bool:
    """Let this process make the passes over a cluster, unless another living one does."""
    free = or_(clusters.c.watcher.is_(None), clusters.c.watcher.not_in(select(processes.c.id)))
    taken = update(clusters).where(clusters.c.id == cluster_id, free).values(watcher=process)
    return connection.execute(taken.returning(clusters.c.id)).scalar() is not None


def watches(connection: Connection, cluster_id: int, process: str) -> bool:
    """Tell whether it is still this process that makes the passes, until the transaction ends."""
    query = select(clusters.c.id).where(clusters.c.id == cluster_id, clusters.c.watcher == process)
    return connection.execute(query.with_for_update(key_share=True)).scalar() is not None


def last_seen(connection: Connection, cluster_id: int) -> datetime | None:
    """When was this cluster last seen well?"""
    return connection.execute(
        select(func.max(machines.c.seen_at)).where(machines.c.cluster_id == cluster_id)
    ).scalar()


def record_machines(
    connection: Connection, now: datetime, cluster_id: int, seen: Sequence[SeenMachine]
) -> None:
    """Write what an inventory showed. New cards appear unlisted; missing ones are no longer present."""
    known = select(machines.c.name, machines.c.id).where(machines.c.cluster_id == cluster_id)
    ids = dict(iter(connection.execute(known)))
    cards = {
        card.uuid: card
        for card in connection.execute(
            select(gpus.c.uuid, gpus.c.id, gpus.c.machine_id, gpus.c.present)
            .join_from(gpus, machines, gpus.c.machine_id == machines.c.id)
            .where(machines.c.cluster_id == cluster_id)
        )
    }
    # What did not change is not written: a cluster of thousands of cards comes and goes as a whole.
    changed: dict[bool, list[int]] = {True: [], False: []}
    for machine in seen:
        machine_id = _record_machine(connection, now, cluster_id, ids.pop(machine.name, None), machine)
        for card in machine.gpus:
            was = cards.pop(card.uuid, None)
            if was is None or was.machine_id != machine_id:
                _record_gpu(connection, machine_id, card, online=machine.online)
            elif was.present != machine.online:
                changed[machine.online].append(was.id)
    changed[False] += [card.id for card in cards.values() if card.present]
    for present, gpu_ids in changed.items():
        for first in range(0, len(gpu_ids), 1000):
            some = gpus.c.id.in_(gpu_ids[first : first + 1000])
            connection.execute(update(gpus).where(some).values(present=present))
    if ids:
        connection.execute(update(machines).where(machines.c.id.in_(ids.values())).values(online=False))


def _record_machine(
    connection: Connection, now: datetime, cluster_id: int, machine_id: int | None, seen: SeenMachine
) -> int:
    values = {
        "online": seen.online,
        "cpu": seen.cpu,
        "cores": seen.cores,
        "ram": seen.ram,
        "disk": seen.disk,
        "bound_address": seen.address,
        "address": seen.address,
        "probe_address": seen.address,
    }
    if machine_id is not None:
        connection.execute(update(machines).where(machines.c.id == machine_id).values(values))
        return machine_id
    made = insert(machines).values(values | {"cluster_id": cluster_id, "name": seen.name, "seen_at": now})
    return connection.execute(made.returning(machines.c.id)).scalar_one()


def _record_gpu(connection: Connection, machine_id: int, card: SeenGpu, *, online: bool) -> None:
    known = connection.execute(select(gpus.c.id).where(gpus.c.uuid == card.uuid)).scalar()
    if known is not None:
        connection.execute(
            update(gpus).where(gpus.c.id == known).values(machine_id=machine_id, present=online)
        )
        return
    connection.execute(
        insert(gpus).values(
            machine_id=machine_id,
            uuid=card.uuid,
            model=card.model,
            type=type_for_card(connection, card.model, card.vram),
            vram=card.vram,
            simulated=card.simulated,
            price=Decimal(0),
            available_until=UNLIMITED,
            present=online,
        )
    )


def seen_well(connection: Connection, now: datetime, cluster_id: int) -> None:
    """Write that a pass saw this cluster's online machines well: one row a machine, not an instance."""
    connection.execute(
        update(machines).where(machines.c.cluster_id == cluster_id, machines.c.online).values(seen_at=now)
    )


def offline(connection: Connection, cluster_id: int) -> None:
    """Write that a cluster does not answer: nothing on it is offered."""
    connection.execute(update(machines).where(machines.c.cluster_id == cluster_id).values(online=False))
    here = select(machines.c.id).where(machines.c.cluster_id == cluster_id)
    connection.execute(update(gpus).where(gpus.c.machine_id.in_(here)).values(present=False))


def keep_orphans(
    connection: Connection, now: datetime, cluster_id: int, found: Sequence[tuple[str, str, int | None]]
) -> list[str]:
    """Write which unknown instances are there now (name, cards, port); gives the names of new ones.

    Their cards become suspect, and stay so while the orphan is there.
    """
    known = set(
        connection.execute(select(orphans.c.name).where(orphans.c.cluster_id == cluster_id)).scalars()
    )
    names = {name for name, _, _ in found}
    connection.execute(
        delete(orphans).where(orphans.c.cluster_id == cluster_id, orphans.c.name.in_(known - names))
    )
    for name, cards, port in found:
        if name not in known:
            connection.execute(
                insert(orphans).values(
                    cluster_id=cluster_id, name=name, gpu_uuids=cards, port=port, found_at=now
                )
            )
        connection.execute(
            update(gpus)
            .where(gpus.c.uuid.in_(cards.split()))
            .values(suspect=True, suspect_why=f"held by {name}, which this store does not know")
        )
    return sorted(names - known)


def all_orphans(connection: Connection, cluster_id: int | None = None) -> list[Orphan]:
    """Which unknown instances are there, everywhere or on one cluster? Oldest first."""
    query = (
        select(
            orphans.c.cluster_id,
            clusters.c.name,
            orphans.c.name,
            orphans.c.gpu_uuids,
            orphans.c.port,
            orphans.c.found_at,
            orphans.c.spec,
            orphans.c.purge,
        )
        .join_from(orphans, clusters, orphans.c.cluster_id == clusters.c.id)
        .order_by(orphans.c.found_at, orphans.c.name)
    )
    if cluster_id is not None:
        query = query.where(orphans.c.cluster_id == cluster_id)
    return [
        Orphan(cluster, cluster_name, name, tuple(cards.split()), port, found_at, spec, purge)
        for cluster, cluster_name, name, cards, port, found_at, spec, purge in connection.execute(query)
    ]


def orphan_named(connection: Connection, name: str) -> Orphan | None:
    """Which unknown instance bears this driver name?

    Its cluster is locked until the transaction ends, so that no pass records what it saw before.
    """
    query = select(orphans.c.cluster_id).where(orphans.c.name == name).order_by(orphans.c.cluster_id)
    cluster_id = connection.execute(query.limit(1)).scalar()
    if cluster_id is None:
        return None
    lock = select(clusters.c.id).where(clusters.c.id == cluster_id).with_for_update(key_share=True)
    connection.execute(lock)
    return next((one for one in all_orphans(connection, cluster_id) if one.name == name), None)


def keep_specs(connection: Connection, cluster_id: int, specs: Mapping[str, bytes]) -> None:
    """Keep what unknown instances of a cluster were made from, sealed, by name."""
    for name, sealed in specs.items():
        this = (orphans.c.cluster_id == cluster_id) & (orphans.c.name == name)
        connection.execute(update(orphans).where(this).values(spec=sealed))


def purge_orphan(connection: Connection, name: str) -> bool | None:
    """Have an unknown instance removed. False: that was decided before; None: there is none."""
    query = select(orphans.c.purge).where(orphans.c.name == name).with_for_update()
    marked = list(connection.execute(query).scalars())
    if not marked:
        return None
    connection.execute(update(orphans).where(orphans.c.name == name).values(purge=True))
    return not all(marked)


def forget_orphan(connection: Connection, cluster_id: int, name: str) -> bool:
    """Take it off the list: it is known from now on. False if it is to be removed."""
    gone = delete(orphans).where(orphans.c.cluster_id == cluster_id, orphans.c.name == name, ~orphans.c.purge)
    return connection.execute(gone.returning(orphans.c.name)).scalar() is not None


def orphan_ports(connection: Connection, cluster_id: int) -> set[int]:
    """Which ports are held by instances that nobody knows?"""
    query = select(orphans.c.port).where(orphans.c.cluster_id == cluster_id, orphans.c.port.is_not(None))
    return set(connection.execute(query).scalars())


def clear_well(connection: Connection, cluster_id: int) -> None:
    """Offer suspect GPUs again that are present, that nothing holds, and that have not failed too often."""
    here = select(machines.c.id).where(machines.c.cluster_id == cluster_id)
    held = exists().where(orphans.c.cluster_id == cluster_id, _HELD_BY_ORPHAN)
    connection.execute(
        update(gpus)
        .where(gpus.c.suspect, gpus.c.present, gpus.c.free, gpus.c.failures < MOST_FAILURES)
        .where(gpus.c.machine_id.in_(here), ~held)
        .values(suspect=False, suspect_why="")
    )


# --- the operator's ----------------------------------------------------------------------------------------


def all_gpus(connection: Connection) -> list[GpuRow]:
    """Which cards are there, and what is offered?"""
    query = (
        select(
            gpus.c.id,
            gpus.c.type,
            gpus.c.model,
            machines.c.name.label("machine"),
            gpus.c.simulated,
            gpus.c.listed,
            gpus.c.price,
            gpus.c.available_until,
            gpus.c.reserved_until,
            gpus.c.present,
            gpus.c.free,
            gpus.c.suspect_why,
        )
        .join_from(gpus, machines, gpus.c.machine_id == machines.c.id)
        .order_by(gpus.c.id)
    )
    return [GpuRow(**row) for row in connection.execute(query).mappings()]


def change_listing(connection: Connection, gpu_ids: Collection[int], values: dict[str, object]) -> set[int]:
    """Change what the operator decides of these cards; gives the ids that exist."""
    changed = connection.execute(
        update(gpus)
        .where(gpus.c.id.in_(bindparam("ids", expanding=True)))
        .values(values)
        .returning(gpus.c.id),
        {"ids": list(gpu_ids)},
    )
    return set(changed.scalars())


def clear(connection: Connection, gpu_ids: Collection[int]) -> None:
    """Trust these cards again."""
    change_listing(connection, gpu_ids, {"suspect": False, "suspect_why": "", "failures": 0})


def card_of(connection: Connection, cluster_id: int, uuid: str) -> Card | None:
    """Which card of this cluster is this? It is locked until the transaction ends."""
    row = connection.execute(
        select(
            gpus.c.id,
            gpus.c.type,
            gpus.c.machine_id,
            machines.c.name.label("machine"),
            gpus.c.listed,
            gpus.c.price,
            gpus.c.available_until,
        )
        .join_from(gpus, machines, gpus.c.machine_id == machines.c.id)
        .where(gpus.c.uuid == uuid, machines.c.cluster_id == cluster_id)
        .with_for_update(of=gpus, key_share=True)
    )
    found = row.mappings().one_or_none()
    return None if found is None else Card(**found)


def cards_named(connection: Connection, uuids: Collection[str]) -> dict[str, tuple[int, str]]:
    """Which cards have these UUIDs? By UUID: (id, type)."""
    query = select(gpus.c.uuid, gpus.c.id, gpus.c.type).where(gpus.c.uuid.in_(uuids))
    return {uuid: (gpu_id, kind) for uuid, gpu_id, kind in connection.execute(query)}


def held_by_orphans(connection: Connection) -> dict[int, str]:
    """Which cards does something hold that this store does not know? By id: its driver name."""
    query = select(gpus.c.id, orphans.c.name).join_from(gpus, orphans, _HELD_BY_ORPHAN)
    return dict(iter(connection.execute(query)))
