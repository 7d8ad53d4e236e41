"""What tests of the reconciler look at in the store, and the invariants that hold in any state at rest."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from vectordash.server.db.session import Store
from vectordash.server.drivers.fake import Call, FakeDriver
from vectordash.server.instances.tables import attempts, instances
from vectordash.server.machines.tables import clusters, gpus, orphans


@dataclass(frozen=True)
class Held:
    """An attempt."""

    instance: str
    number: int
    gpu_id: int
    driver_name: str
    port: int
    released_at: datetime | None


def attempts_of(connection: Connection, key: str | None = None) -> list[Held]:
    """Which attempts were made? Of one instance, or of all."""
    columns = [attempts.c[name] for name in Held.__dataclass_fields__]
    query = select(*columns).order_by(attempts.c.instance, attempts.c.number)
    if key is not None:
        query = query.where(attempts.c.instance == key)
    return [Held(*row) for row in connection.execute(query)]


def row_of(connection: Connection, key: str) -> Any:
    """Everything that stands in the store of an instance."""
    return connection.execute(select(instances).where(instances.c.key == key)).one()


def gpu(connection: Connection, gpu_id: int) -> Any:
    """Everything that stands in the store of a card."""
    return connection.execute(select(gpus).where(gpus.c.id == gpu_id)).one()


def orphan_names(connection: Connection) -> list[str]:
    """Which orphans are there?"""
    return list(connection.execute(select(orphans.c.name).order_by(orphans.c.name)).scalars())


def narrow_ports(connection: Connection, only: int) -> None:
    """Leave the clusters a single port to give."""
    connection.execute(update(clusters).values(first_port=only, last_port=only))


async def reach(driver: FakeDriver, call: Call, times: int = 1) -> None:
    """Wait until the reconciler, at work in another task, comes to this call."""
    async with asyncio.timeout(5):
        while driver.calls[call] < times:
            await asyncio.sleep(0)


def demand_order(store: Store, driver: FakeDriver, *, adopted: Sequence[str] = ()) -> None:
    """Nothing is held that does not exist, and nothing exists that is not held. True in any state at rest.

    `adopted`: live instances whose private key is their renter's alone.
    """
    held = [one for one in store.ask(attempts_of) if one.released_at is None]
    live = store.ask(
        lambda connection: list(
            connection.execute(
                select(instances.c.key, instances.c.attempt).where(instances.c.ended_at.is_(None))
            )
        )
    )
    free = store.ask(lambda connection: dict(iter(connection.execute(select(gpus.c.id, gpus.c.free)))))
    pems = store.ask(
        lambda connection: list(
            connection.execute(select(instances.c.key).where(instances.c.pem.is_not(None))).scalars()
        )
    )

    assert sorted(driver.there) == sorted(one.driver_name for one in held)
    assert sorted((one.instance, one.number) for one in held) == sorted(map(tuple, live))
    assert {gpu_id for gpu_id, is_free in free.items() if not is_free} == {one.gpu_id for one in held}
    assert len({one.gpu_id for one in held}) == len(held)
    specs = [one.spec for one in driver.there.values()]
    assert len({(spec.machine, spec.address, spec.port) for spec in specs}) == len(held)
    assert sorted([*pems, *adopted]) == sorted(key for key, _ in live)
    for one in held:
        assert driver.there[one.driver_name].running
        assert driver.there[one.driver_name].spec.port == one.port
