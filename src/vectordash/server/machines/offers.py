"""Which GPU a POST takes, and what `GET /api/gpus` shows: the same one.

Both ways to choose, without a date (`_LATEST`) and with one (`_CHEAPEST`), are one seek in an index of their
own. The list uses the very same order, one seek a type.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import ColumnElement, Connection, TextClause, func, or_, select, true

from vectordash.server.catalogue.tables import gpu_types
from vectordash.server.clock import as_written
from vectordash.server.machines.tables import OFFERABLE, gpus
from vectordash.wire.gpu import Gpu

_LATEST = (gpus.c.available_until.desc(), gpus.c.price, gpus.c.id)
"""The longest promise, then the lowest price, then the lowest id."""
_CHEAPEST = (gpus.c.price, gpus.c.available_until.desc(), gpus.c.id)
"""The lowest price, then the longest promise, then the lowest id."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A listed free GPU that a POST would take now."""

    gpu_id: int
    type: str
    price: Decimal
    until: datetime
    machine_id: int


def best_offer(
    connection: Connection,
    type_: str,
    now: datetime,
    *,
    at_least_until: datetime,
    cheapest: bool = False,
    without: Collection[int] = (),
) -> Offer | None:
    """Which GPU of this type would be rented now? `cheapest` is for a renter who named a date.

    It is locked until the transaction ends. Those that others have locked are passed over, and waited for
    only if there is no other: they may be let go again.
    """
    lasts = gpus.c.available_until >= at_least_until
    query = (
        select(gpus.c.id, gpus.c.type, gpus.c.price, gpus.c.available_until, gpus.c.machine_id)
        # `is true` keeps SQLite from seeking by time in the other index and sorting all that it finds.
        .where(gpus.c.type == type_, lasts.is_(true()) if cheapest else lasts, *_free(now))
        .order_by(*(_CHEAPEST if cheapest else _LATEST))
        .limit(1)
    )
    if without:
        query = query.where(gpus.c.id.not_in(without))
    row = connection.execute(query.with_for_update(skip_locked=True, key_share=True)).one_or_none()
    if row is None:
        row = connection.execute(query.with_for_update(key_share=True)).one_or_none()
    return None if row is None else Offer(*row)


def free_types(connection: Connection, now: datetime, at_least_until: datetime) -> list[Gpu]:
    """What can be rented now? One row a type that has a free GPU, in the catalogue's order."""
    first = (
        select(gpus.c.id)
        .where(gpus.c.type == gpu_types.c.name, gpus.c.available_until >= at_least_until, *_free(now))
        .order_by(*_LATEST)
        .limit(1)
        .correlate(gpu_types)
        .scalar_subquery()
    )
    offered = gpus.alias("offered")
    query = (
        select(
            gpu_types.c.name,
            gpu_types.c.gigaflops,
            gpu_types.c.vram,
            gpu_types.c.generation,
            offered.c.price,
            offered.c.available_until,
            gpu_types.c.asic,
        )
        .join_from(gpu_types, offered, offered.c.id == first)
        .order_by(gpu_types.c.position)
    )
    return [
        Gpu(
            type=name,
            teraflops=_teraflops(gigaflops),
            vram=vram,
            generation=generation,
            hourly_price=price,
            max_availability=as_written(until),
            asic=asic,
        )
        for name, gigaflops, vram, generation, price, until, asic in connection.execute(query)
    ]


def _teraflops(gigaflops: int) -> Decimal:
    """11340 is 11.34, and 15000 is 15.0: as many decimals as it takes, at least one."""
    exact = (Decimal(gigaflops) / 1000).normalize()
    return max(exact, exact.quantize(Decimal("0.1")), key=lambda value: -int(value.as_tuple().exponent))


def next_reservation_end(connection: Connection, type_: str, now: datetime) -> datetime | None:
    """When does the next reservation of a GPU of this type end?"""
    query = select(func.min(gpus.c.reserved_until)).where(
        OFFERABLE, gpus.c.type == type_, gpus.c.reserved_until > now
    )
    return connection.execute(query).scalar()


def _free(now: datetime) -> tuple[ColumnElement[bool] | TextClause, ...]:
    return OFFERABLE, or_(gpus.c.reserved_until.is_(None), gpus.c.reserved_until <= now)
