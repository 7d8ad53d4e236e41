"""Who lives: the processes that use a store, and how each learns that another is dead.

A lease is worth as much as its holder's life, and no clock says whether somebody lives: clocks are set, and
differ. So each process raises a number in its row every second. Whoever has watched a row's number stand
still for `BURIED` seconds, by its own watch and without looking away, deletes the row; with it every lease of
that process is void (`instances/leases.py`). A process that could not raise its number for a while does not
know whether it still holds anything: it puts its tools down before it may be buried (`sure`), and one that
was buried takes a new name.

SQLite's file is used by one server, as its lock says, so there is nobody to watch.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Column, Connection, Integer, Table, Text, TypedColumns, delete, insert, select, update

from vectordash.server.clock import Clock
from vectordash.server.db.base import Instant, metadata
from vectordash.server.db.session import Store
from vectordash.wire.errors import Unavailable

log = logging.getLogger(__name__)

BEAT = 1.0
"""Seconds between two beats."""
BURIED = 5.0
"""Seconds without a beat after which a process counts as dead."""
_SURE = 3.5
"""Seconds after the beginning of its last beat that a process may be sure that nobody has buried it."""


class ProcessColumns(TypedColumns):
    """A process that uses this store."""

    id = Column(Text, primary_key=True)
    """Random, of one life: leases bear it."""
    kind = Column(Text, nullable=False)
    """`up`, `api` or `reconciler`."""
    host = Column(Text, nullable=False)
    pid = Column(Integer, nullable=False)
    started_at = Column(Instant, nullable=False)
    beat = Column(Integer, nullable=False, default=0)
    beaten_at = Column(Instant, nullable=False)
    """For people; nothing is decided by it."""


processes = Table("processes", metadata, ProcessColumns)


@dataclass(frozen=True, slots=True)
class Process:
    """A process, for people."""

    id: str
    kind: str
    host: str
    pid: int
    started_at: datetime
    beaten_at: datetime


def all_processes(connection: Connection) -> list[Process]:
    """Who uses this store, as far as is known?"""
    query = select(*(processes.c[name] for name in Process.__dataclass_fields__)).order_by(
        processes.c.started_at
    )
    return [Process(*row) for row in connection.execute(query)]


def enter(connection: Connection, process: Process) -> None:
    """Write that a process has begun."""
    values = {name: getattr(process, name) for name in Process.__dataclass_fields__}
    connection.execute(insert(processes).values(values))


def clear(connection: Connection) -> None:
    """Forget all processes: they are known to be dead."""
    connection.execute(delete(processes))


def leave(connection: Connection, process_id: str) -> None:
    """Write that a process has ended: what it held is free."""
    connection.execute(delete(processes).where(processes.c.id == process_id))


def beat(connection: Connection, process_id: str, now: datetime) -> dict[str, int] | None:
    """Show that a process lives; gives everybody's numbers, or None if it was buried."""
    alive = connection.execute(
        update(processes)
        .where(processes.c.id == process_id)
        .values(beat=processes.c.beat + 1, beaten_at=now)
        .returning(processes.c.id)
    ).scalar()
    if alive is None:
        return None
    return dict(iter(connection.execute(select(processes.c.id, processes.c.beat))))


def bury(connection: Connection, process_id: str, number: int) -> bool:
    """Void what a process holds, unless it has raised its number meanwhile."""
    buried = delete(processes).where(processes.c.id == process_id, processes.c.beat == number)
    return connection.execute(buried.returning(processes.c.id)).scalar() is not None


def _watch() -> float:
    """Seconds that also pass while this process or its computer sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Presence:
    """This process among the others."""

    store: Store
    clock: Clock
    kind: str
    on_death: Callable[[], None] = lambda: None
    """Called when somebody's leases have become void: what was held is to be taken up."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    watch: Callable[[], float] = _watch
    _beaten: float = 0.0
    _give_up: bool = False
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of each other process: its number, and since when it stands still."""

    def enter(self) -> None:
        """Take part. Blocks; the server calls it before its loop begins."""
        began = self.watch()
        self.store.change(self._enter, self.id)
        self._beaten = began

    def _enter(self, connection: Connection, name: str) -> None:
        now = self.clock()
        if not self.store.shared:
            clear(connection)
        enter(connection, Process(name, self.kind, socket.gethostname(), os.getpid(), now, now))

    @property
    def sure(self) -> bool:
        """Whether nobody can have buried this process yet."""
        return not self.store.shared or self.watch() - self._beaten < _SURE

    def give_up(self) -> None:
        """Let go of whatever this process holds, as soon as the store can be told: it goes on as another.

        For one that was not sure and has put its tools down: it may have left leases that nobody works on.
        """
        self._give_up = True

    async def run(self) -> None:
        """Beat, and bury the dead, until cancelled. Returns at once where there is nobody to watch."""
        while self.store.shared:
            try:
                await self.look()
            except Unavailable as error:
                log.warning("no heartbeat: %s", error)
            except Exception:  # a process without a heartbeat does nothing any more
                log.exception("the heartbeat failed")
            await asyncio.sleep(BEAT)

    async def look(self) -> None:
        """Beat once, look at the others, and bury those that were seen dead."""
        began = self.watch()
        numbers = await self.store.write_at_once(beat, self.id, self.clock())
        if numbers is None or self._give_up:
            await self._begin_anew("was out of touch" if self._give_up else "was taken for dead")
            numbers = {}
        blind = began - self._beaten > BURIED / 2
        self._beaten = began
        if blind:  # what stood still meanwhile may have done so with us, such as when the database was away
            self._seen.clear()
        for other in self._still(numbers, self.watch()):
            if await self.store.write_at_once(bury, other, numbers[other]):
                log.warning(
                    "process %s has not been heard of for %.0f s: its work is taken up", other, BURIED
                )
                self.on_death()

    async def _begin_anew(self, why: str) -> None:
        old, new = self.id, secrets.token_hex(8)

        def change_name(connection: Connection) -> None:
            leave(connection, old)
            self._enter(connection, new)

        await self.store.write_at_once(change_name)
        self.id, self._give_up = new, False
        log.warning("this process %s; it goes on under another name", why)
        self.on_death()

    def _still(self, numbers: dict[str, int], now: float) -> list[str]:
        """Note what is seen; gives those that have stood still for too long."""
        self._seen = {
            other: self._seen[other] if self._seen.get(other, (None, now))[0] == number else (number, now)
            for other, number in numbers.items()
            if other != self.id
        }
        return [other for other, (_, since) in self._seen.items() if now - since >= BURIED]

    async def leave(self) -> None:
        """Take part no longer; others take up what this process held."""
        try:
            await self.store.write_at_once(leave, self.id)
        except Unavailable as error:
            log.warning("the others will notice that this process has ended: %s", error)
