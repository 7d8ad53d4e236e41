"""Who did what: one line a deed, written inside the transaction of the deed itself."""

from datetime import datetime

from sqlalchemy import Column, Connection, Integer, Table, Text, TypedColumns, insert

from vectordash.server.db.base import Instant, metadata


class AuditColumns(TypedColumns):
    """A deed."""

    id = Column(Integer, primary_key=True)
    time = Column(Instant, nullable=False)
    who = Column(Text, nullable=False)
    """An account's e-mail, `operator` (a command on the server) or `vdserver` (the program by itself)."""
    did = Column(Text, nullable=False)
    """A verb: `rent`, `delete`, `list`, …"""
    what = Column(Text, nullable=False)


audit = Table("audit", metadata, AuditColumns)


def record(connection: Connection, now: datetime, who: str, did: str, what: str) -> None:
    """Write one line, inside the caller's transaction."""
    connection.execute(insert(audit).values(time=now, who=who, did=did, what=what))
