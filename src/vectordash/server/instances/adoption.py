"""What the operator decides about an orphan: it becomes an instance of an account's, or it is removed.

An orphan runs on a cluster, and the store has never heard of it: as a rule because the store is a backup that
was restored. What it was made from is asked of its cluster by the pass (`reconciler/machine.py`), which keeps
it sealed; `adopt` makes an instance of that as it is, in one transaction, and the reconciler goes on from
there. `purge` marks it, and a pass removes it. One that is marked is never adopted, since its removal may be
under way.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import msgspec
from sqlalchemy import Connection, insert

from vectordash.server import audit
from vectordash.server.accounts.store import user_id_of
from vectordash.server.clock import how_long
from vectordash.server.drivers.base import Spec
from vectordash.server.instances import oversight, store
from vectordash.server.instances.holding import Seat, hold_as_it_is
from vectordash.server.instances.keys import HostKey, host_key_from
from vectordash.server.instances.oversight import Holder
from vectordash.server.instances.tables import instances
from vectordash.server.machines import store as machines
from vectordash.server.machines.store import Card, Orphan
from vectordash.server.vault import Vault
from vectordash.wire.errors import BadRequest
from vectordash.wire.instance import Name

LISTED = "They are shown by: vdserver instance orphans"


@dataclass(frozen=True, slots=True)
class Wish:
    """Whose it becomes, and how; None: as it was, or as its GPU is offered."""

    email: str
    name: str | None = None
    price: Decimal | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Adopted:
    """What an orphan has become."""

    key: str
    name: str
    email: str
    gpu_id: int
    gpu_type: str
    price: Decimal
    until: datetime


def seal_spec(vault: Vault, name: str, spec: Spec) -> bytes:
    """Seal what the orphan of this driver name was made from: its host key is in it."""
    return vault.seal(msgspec.json.encode(spec).decode(), name)


def open_spec(vault: Vault, orphan: Orphan) -> Spec | None:
    """Tell what an orphan was made from; None if it is not known. Raises `VaultError`."""
    if orphan.spec is None:
        return None
    try:
        return msgspec.json.decode(vault.open(orphan.spec, orphan.name), type=Spec)
    except msgspec.ValidationError:  # kept by a program whose specs were others
        return None


def adopt(connection: Connection, vault: Vault, now: datetime, driver_name: str, wish: Wish) -> Adopted:
    """Make an orphan a live instance of an account's, as it is. Billing begins now.

    What was before is not known, so it is not charged. The account's limits do not apply: it is the operator
    who decides. Raises `BadRequest` and `VaultError`.
    """
    orphan = machines.orphan_named(connection, driver_name)
    if orphan is None:
        raise _no_orphan(connection, driver_name)
    if not machines.forget_orphan(connection, orphan.cluster_id, driver_name):
        raise BadRequest(f"{driver_name} is to be removed, as was decided: it cannot be adopted any more.")
    email = wish.email.lower()
    user_id = user_id_of(connection, email)
    if user_id is None:
        raise BadRequest(f"{email} has no account. Make one with: vdserver user add {email}")
    spec = open_spec(vault, orphan)
    if spec is None:
        raise BadRequest(
            f"It is not known yet what {driver_name} was made from. A running server asks {orphan.cluster} "
            "for it every few seconds, and its log says why there is no answer"
        )
    name, host_key = _name(wish.name or spec.hostname), _demand_whole(spec)
    card = _demand_free(connection, orphan, spec)
    if wish.price is None and not card.listed:
        raise BadRequest(f"GPU {card.id} is not listed, so it has no price. Say --price DOLLARS")
    price = card.price if wish.price is None else wish.price
    until = wish.until or card.available_until
    key = secrets.token_hex(6)
    connection.execute(
        insert(instances).values(
            key=key,
            user_id=user_id,
            name=name,
            gpu_type=card.type,
            image=spec.image,
            price=price,
            until=until,
            created_at=now,
            active_at=now,
            well_since=now,
            public_key=spec.authorized_keys[0],
            attempt=1,
            due_at=now,
        )
    )
    hold_as_it_is(connection, vault, now, key, spec, host_key, Seat(card.id, card.machine_id))
    promise = f"GPU {card.id} ({card.type}) at {price:.2f} an hour, {how_long(until)}"
    said = f"Taken over by the operator of this cloud as it ran: {promise}. Billing begins now."
    store.tell(connection, key, now, "adopted", said, 1)
    deed = f"{driver_name} as {key} “{name}” of {email}: {promise}"
    audit.record(connection, now, "operator", "adopt", deed)
    return Adopted(key, name, email, card.id, card.type, price, until)


def purge(connection: Connection, now: datetime, driver_names: Sequence[str]) -> list[str]:
    """Have orphans removed with their disks, all or none; gives those for which it was not decided before.

    Raises `BadRequest`.
    """
    fresh = []
    for name in dict.fromkeys(driver_names):
        marked = machines.purge_orphan(connection, name)
        if marked is None:
            raise _no_orphan(connection, name)
        if marked:
            audit.record(connection, now, "operator", "purge", name)
            fresh.append(name)
    return fresh


def _no_orphan(connection: Connection, name: str) -> BadRequest:
    """Say what it is instead: an instance's driver name, key or name, or nothing."""
    known = oversight.instance_called(connection, name)
    if known is None:
        return BadRequest(f"There is no orphan {name}. {LISTED}")
    if known.ended_at is None:
        return BadRequest(f"{name} is no orphan but {known}. To end it: vdserver instance end {known.key}")
    return BadRequest(
        f"{name} is no orphan but {known}, which has ended: what is left of it is removed by itself. "
        f"See: vdserver instance show {known.key}"
    )


def _name(name: str) -> str:
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise BadRequest(
            f"“{name}” is no name of an instance: letters, digits, - and _, at most 63. Say --name NAME"
        ) from error


def _demand_whole(spec: Spec) -> HostKey:
    """Refuse what could not be run again after a power cut."""
    try:
        host_key = host_key_from(spec.host_key)
    except ValueError as error:
        raise _unfit(spec, "its host key cannot be read") from error
    if not spec.authorized_keys:
        raise _unfit(spec, "nobody may log in to it")
    if len(spec.gpus) != 1:
        raise _unfit(spec, f"it holds {len(spec.gpus)} GPUs, and an instance has one")
    return host_key


def _unfit(spec: Spec, why: str) -> BadRequest:
    return BadRequest(
        f"{spec.name} cannot be adopted: {why}. To remove it: vdserver instance purge {spec.name}"
    )


def _demand_free(connection: Connection, orphan: Orphan, spec: Spec) -> Card:
    """Refuse what another instance holds, or what is not where the orphan says."""
    uuid = spec.gpus[0]
    card = machines.card_of(connection, orphan.cluster_id, uuid)
    if card is None or card.machine != spec.machine:
        raise BadRequest(
            f"{spec.name} runs on {uuid} of the machine {spec.machine}; this store knows no such GPU there. "
            "What it knows: vdserver gpu list"
        )
    if (holder := oversight.holder_of_gpu(connection, card.id)) is not None:
        raise _held(f"GPU {card.id}, on which {spec.name} runs,", holder)
    holder = oversight.holder_of_port(connection, card.machine_id, spec.address, spec.port)
    if holder is not None:
        raise _held(f"Port {spec.port}, at which {spec.name} is reached,", holder)
    return card


def _held(what: str, holder: Holder) -> BadRequest:
    if holder.ended_at is None:
        return BadRequest(f"{what} is held by {holder}. End that first: vdserver instance end {holder.key}")
    return BadRequest(
        f"{what} is still held by {holder}, which has ended. Try again once it is removed: "
        f"vdserver instance show {holder.key}"
    )
