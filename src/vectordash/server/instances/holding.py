"""An attempt: a GPU and a port held for an instance, from the choice until both are known to be free.

Called inside a transaction: by `rent.py` for the first attempt, by `outcomes.py` for the next ones and for
the release, by `adoption.py` for what runs already. The unique indexes of `attempts` make it impossible to
hold a GPU or a port twice.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from vectordash.server.drivers.base import Spec
from vectordash.server.instances.keys import HostKey, make_host_key
from vectordash.server.instances.placement import next_port, share
from vectordash.server.instances.tables import attempts, instances
from vectordash.server.machines import store as machines
from vectordash.server.machines.store import Place
from vectordash.server.vault import Vault
from vectordash.wire.errors import PortsExhausted


@dataclass(frozen=True, slots=True)
class Seat:
    """A GPU on a machine."""

    gpu_id: int
    machine_id: int


def hold(connection: Connection, vault: Vault, now: datetime, instance: str, number: int, seat: Seat) -> None:
    """Hold a GPU and a port for an attempt, with a host key made for it.

    Raises `PortsExhausted`, and has changed nothing then: a caller may go on in the same transaction.
    """
    place = machines.place_of(connection, seat.machine_id)
    part = share(cores=place.cores, ram=place.ram, disk=place.disk, gpus=place.gpus)
    name = f"vd-{secrets.token_hex(8)}"
    key = make_host_key()
    hostname = connection.execute(select(instances.c.name).where(instances.c.key == instance)).scalar_one()
    port = _give_port(connection, place)
    machines.take(connection, seat.gpu_id)
    connection.execute(
        insert(attempts).values(
            instance=instance,
            number=number,
            gpu_id=seat.gpu_id,
            machine_id=seat.machine_id,
            driver_name=name,
            hostname=hostname.replace("_", "-"),
            bound_address=place.bound_address,
            address=place.address,
            probe_address=place.probe_address,
            port=port,
            host_key=vault.seal(key.private, name),
            host_public_key=key.public,
            cpu=place.cpu,
            cores=part.cores,
            ram=part.ram,
            storage=part.storage,
            made_at=now,
        )
    )


def hold_as_it_is(
    connection: Connection, vault: Vault, now: datetime, instance: str, spec: Spec, key: HostKey, seat: Seat
) -> None:
    """Hold what something that was made from `spec` has, for the first attempt of the instance it becomes.

    Its GPU and port must be free of other attempts.
    """
    place = machines.place_of(connection, seat.machine_id)
    machines.take(connection, seat.gpu_id)
    machines.trust(connection, seat.gpu_id)
    connection.execute(
        insert(attempts).values(
            instance=instance,
            number=1,
            gpu_id=seat.gpu_id,
            machine_id=seat.machine_id,
            driver_name=spec.name,
            hostname=spec.hostname,
            bound_address=spec.address,
            address=place.address,
            probe_address=place.probe_address,
            port=spec.port,
            host_key=vault.seal(key.private, spec.name),
            host_public_key=key.public,
            cpu=place.cpu,
            cores=spec.cores,
            ram=spec.ram,
            storage=spec.storage,
            made_at=now,
        )
    )


def move_port(connection: Connection, attempt_id: int, machine_id: int) -> int:
    """Give an attempt another port, its own being busy on the machine. Raises `PortsExhausted`."""
    port = _give_port(connection, machines.place_of(connection, machine_id))
    connection.execute(update(attempts).where(attempts.c.id == attempt_id).values(port=port))
    return port


def release(connection: Connection, attempt_id: int, gpu_id: int, now: datetime) -> bool:
    """Let go of an attempt's GPU and port: nothing of it is left on its cluster. False: done before."""
    released = connection.execute(
        update(attempts)
        .where(attempts.c.id == attempt_id, attempts.c.released_at.is_(None))
        .values(released_at=now, host_key=None)
        .returning(attempts.c.id)
    )
    if released.scalar() is None:
        return False
    machines.give_back(connection, gpu_id)
    return True


def _give_port(connection: Connection, place: Place) -> int:
    held = set(
        connection.execute(
            select(attempts.c.port).where(
                attempts.c.machine_id == place.machine_id,
                attempts.c.bound_address == place.bound_address,
                attempts.c.released_at.is_(None),
            )
        ).scalars()
    ) | machines.orphan_ports(connection, place.cluster_id)
    port = next_port(place.first_port, place.last_port, place.last_given_port, held)
    if port is None:
        raise PortsExhausted(f"{place.first_port}-{place.last_port}")
    machines.note_port(connection, place.machine_id, port)
    return port
