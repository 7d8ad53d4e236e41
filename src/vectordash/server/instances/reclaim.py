"""How the operator ends a renter's instance: after its promise is over, or, by force, by breaking it."""

from datetime import datetime

from sqlalchemy import Connection

from vectordash.server import audit
from vectordash.server.clock import how_long
from vectordash.server.instances import store
from vectordash.server.instances.lifecycle import EndReason
from vectordash.server.instances.oversight import Overview
from vectordash.wire.errors import BadRequest


def reclaim(connection: Connection, now: datetime, one: Overview, until: datetime, *, force: bool) -> None:
    """End an instance. Before what was promised is over only by force, and then as an error.

    The renter of a broken promise pays completed hours alone. Raises `BadRequest`.
    """
    broken = until > now
    if broken and not force:
        raise BadRequest(
            f"{one.key} “{one.name}” was promised {how_long(until)}. To break that promise, for which its "
            f"renter pays completed hours only: vdserver instance end {one.key} --force"
        )
    why: EndReason = "broken" if broken else "reclaimed"
    if not store.end(connection, one.key, now, why, now):
        raise BadRequest(f"{one.key} “{one.name}” has ended already. See: vdserver instance show {one.key}")
    promise = "before what was promised was over" if broken else "after what was promised was over"
    store.tell(connection, one.key, now, "ended", f"Ended by the operator of this cloud, {promise}.")
    audit.record(connection, now, "operator", "end", f"{one.key} “{one.name}” of {one.email}: {why}")
