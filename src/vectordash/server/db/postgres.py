"""PostgreSQL, where one computer is not enough: a few connections a process, and nobody waits for ever.

Every wait has an end: for a connection, a lock, a statement, the network. A process that was stopped in the
middle of a transaction loses it after some seconds, and with it the locks that others wait for.
"""

import logging
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from vectordash.wire.errors import Damaged, Unavailable, Unsettled

log = logging.getLogger(__name__)

_LIMITS = {
    "statement_timeout": 10_000,
    "lock_timeout": 3_000,
    "idle_in_transaction_session_timeout": 4_000,
    "tcp_user_timeout": 5_000,
    "client_connection_check_interval": 1_000,
}
"""Milliseconds; as the server sees them."""
NETWORK: dict[str, Any] = {
    "connect_timeout": 3,  # seconds
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,  # milliseconds
}
"""Of every connection: one whose other end is gone is noticed in seconds."""
_OUTAGES = {
    "08": "the connection to it was lost",
    "25006": "it is read-only now",
    "25P03": "it gave up a change that took too long",
    "28": "it does not let this server in",
    "3D": "its database is missing",
    "53": "it has run out of a resource",
    "53100": "its disk is full",
    "53300": "it has too many connections",
    "55P03": "somebody else holds what is to be changed",
    "57": "it was told to stop",
    "57014": "it took too long",
    "58": "its own system failed",
}
"""What is no mistake of ours, by SQLSTATE or its class. Said without the database's own words, which name
hosts and users: those go to the log."""
_AGAIN = frozenset({"40001", "40P01"})
"""Two transactions were in each other's way, and this one was undone."""
_DAMAGES = frozenset({"XX001", "XX002"})
_SETTLE = 6.0
"""Seconds to find out whether a commit was made whose answer was lost: longer than a transaction that the
server still takes for begun is let be."""
_PAUSE = 0.1
_ALONE = 0x76646D67
"""An advisory lock's number: “vdmg”."""


class Postgres:
    """A database on a PostgreSQL server, 14 or later."""

    writers = 8
    tries = 4
    """How often a question or a change is tried that was undone, or whose connection was cut."""

    def __init__(self, url: URL) -> None:
        self._url = url

    def engine(self, *, pool: int, writes: bool) -> Engine:
        """Make the connections of readers or of writers. A reader's statements are each a transaction."""
        limits = _LIMITS | ({} if writes else {"default_transaction_read_only": "on"})
        arguments: dict[str, Any] = {
            **NETWORK,
            "application_name": "vdserver",
            "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
        }
        return create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=5.0,
            # Not tried before use: one that was cut fails at the first statement, and a new one is taken.
            hide_parameters=True,
            connect_args=arguments,
            **({} if writes else {"isolation_level": "AUTOCOMMIT"}),
        )

    def migrating_engine(self) -> Engine:
        """Make a connection for one transaction that may take long."""
        options = "-c lock_timeout=10000"
        return create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=1,
            hide_parameters=True,
            connect_args={"options": options},
        )

    def snapshot_engine(self) -> Engine:
        """Make a connection for one transaction that only reads, takes long and sees one state."""
        limits = ("statement_timeout", "idle_in_transaction_session_timeout")
        options = " ".join(f"-c {name}=0" for name in limits)
        return create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=1,
            hide_parameters=True,
            isolation_level="REPEATABLE READ",
            connect_args={
                **NETWORK,
                "application_name": "vdserver backup",
                "options": f"{options} -c default_transaction_read_only=on",
            },
        )

    def alone(self, connection: Connection) -> None:
        """Keep whoever asks for the same waiting until this transaction ends."""
        connection.execute(text("select pg_advisory_xact_lock(:number)"), {"number": _ALONE})

    def check_migrated(self, connection: Connection) -> None:
        """See `Sqlite`: every statement was checked."""

    def outage(self, error: DBAPIError) -> Unavailable | None:
        """Tell a server that is gone, full, busy or damaged from a mistake of ours."""
        state: str | None = getattr(error.orig, "sqlstate", None)
        if state is None:
            if not error.connection_invalidated and type(error.orig).__name__ != "OperationalError":
                return None
            why = "it cannot be reached"
        elif state in _DAMAGES:
            log.error("PostgreSQL is damaged: %s", error.orig)
            return Damaged("PostgreSQL reports damaged data")
        else:
            found = _OUTAGES.get(state) or _OUTAGES.get(state[:2])
            if found is None:
                return Unavailable("others were in its way") if state in _AGAIN else None
            why = found
        log.warning("PostgreSQL: %s", " ".join(str(error.orig).split()))
        return Unavailable(why)

    def again(self, error: DBAPIError) -> bool:
        """Whether nothing was done and the same may do better at once, perhaps on a new connection."""
        return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _AGAIN

    def number(self, connection: Connection) -> str | None:
        """Tell a transaction's number, by which its fate can be asked for; None if it changed nothing."""
        number: str | None = connection.execute(
            text("select cast(pg_current_xact_id_if_assigned() as text)")
        ).scalar()
        return number

    def committed(self, engine: Engine, number: str) -> bool:
        """Find out whether a transaction was committed whose answer was lost. Raises `Unsettled`."""
        end = time.monotonic() + _SETTLE
        question = text("select pg_xact_status(cast(:number as xid8))")
        while time.monotonic() < end:
            try:
                with engine.connect() as connection:
                    fate = connection.execute(question, {"number": number}).scalar()
            except DBAPIError as error:
                log.info("PostgreSQL: %s", " ".join(str(error.orig).split()))
            else:
                if fate in {"committed", "aborted"}:
                    return bool(fate == "committed")
            time.sleep(_PAUSE)
        raise Unsettled
