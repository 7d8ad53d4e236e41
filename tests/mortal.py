"""A process that dies when a test says so, and the process that comes after it.

`Fate` counts the moments after which something is different outside the process: a change of the store was
made, or a call of the driver that does something. To die anywhere between two of them is the same as to die
right after the first. At its appointed moment it raises `Killed`, which nothing catches. The store and the
cluster live on; the rest is made anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud import HandClock, open_cloud, work_on
from databases import Database
from vectordash.server import app
from vectordash.server.accounts.service import Accounts
from vectordash.server.db import presence
from vectordash.server.db.presence import BEAT, BURIED, Presence
from vectordash.server.db.session import Store
from vectordash.server.drivers.fake import FakeDriver, simple_machine
from vectordash.server.instances import leases
from vectordash.server.instances.service import Instances
from vectordash.server.instances.waiting import Waiters
from vectordash.server.reconciler.instance import Cluster, Surroundings
from vectordash.server.reconciler.machine import Watch
from vectordash.wire.instance import NewInstance

DEEDS = {"ensure", "login", "remove"}


class Killed(BaseException):
    """The process is no more."""


@dataclass
class Fate:
    """When the reconciler's process dies; 0: it does not."""

    at: int = 0
    begun: bool = False
    """What was done before, by the API, does not count."""
    passed: list[str] = field(default_factory=list)

    def meet(self, moment: str) -> None:
        """Live through a moment, or not."""
        if not self.begun:
            return
        self.passed.append(moment)
        if len(self.passed) == self.at:
            raise Killed(moment)


class MortalStore(Store):
    """A store whose process may die when a change is on disk, before its caller hears of it."""

    fate: Fate

    async def write(self, change: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Store`."""
        result = await super().write(change, *args, **kwargs)
        self.fate.meet(change.__name__)
        return result


@dataclass
class MortalDriver:
    """A driver whose process may die when a call has taken effect, before its caller hears of it."""

    cluster: FakeDriver
    fate: Fate

    def __getattr__(self, name: str) -> Any:
        """Give what the cluster has; a deed may be the last."""
        found = getattr(self.cluster, name)
        if name not in DEEDS:
            return found

        async def deed(*args: Any) -> None:
            try:
                await found(*args)
            finally:
                self.fate.meet(name)

        return deed


@dataclass
class World:
    """What outlives a process: a data folder, with two 1080 ti on offer and keys in stock, and a token.

    The store's object outlives it too, without its connections: a new one would translate every statement
    anew, which takes ten times as long as a whole story.
    """

    database: Database
    made: Path
    """The folder as it was made; each story begins with a copy of it and its store."""
    token: str

    def __post_init__(self) -> None:
        folder = self.made.with_name("data")
        self.database.copy(self.made, folder)
        self.settings = self.database.settings(folder, key_stock=0)
        self.store = MortalStore(self.settings.store_url, readers=1)

    def anew(self) -> "World":
        """Begin from the start."""
        self.store.hang_up()
        self.database.copy(self.made, self.settings.data)
        return self


@dataclass
class Process:
    """One life of a control plane's process."""

    world: World
    clock: HandClock
    driver: FakeDriver
    fate: Fate = field(default_factory=Fate)
    buries: bool = True
    """It learns that those before it are dead; if not, what they held stays theirs while its time lasts."""
    watched: float = 0.0
    """Seconds by its own watch."""

    def __post_init__(self) -> None:
        settings = self.world.settings
        self.store = self.world.store
        self.store.fate = self.fate
        vault = app.open_vault(settings, self.store)
        self.presence = Presence(self.store, self.clock, "up", watch=lambda: self.watched)
        if self.buries:
            self.presence.enter()
        else:
            now = self.clock()
            ours = presence.Process(self.presence.id, "up", "here", 1, now, now)
            self.store.change(presence.enter, ours)
        driver: Any = MortalDriver(self.driver, self.fate)
        cluster = Cluster(1, "fake", self.driver.name, driver)
        self.around = Surroundings(self.store, self.clock, vault, {1: cluster}, self.presence)
        self._watch = Watch(
            self.store, self.clock, cluster, settings.grace, settings.machine_timeout, self.presence, vault
        )
        self.accounts = Accounts(self.store, self.clock, settings.payments)
        self.instances = Instances(
            self.store,
            self.clock,
            settings,
            vault,
            self.accounts,
            Waiters(self.store),
            wake=lambda: None,
            tell=lambda _: None,
        )

    async def bury_the_dead(self) -> "Process":
        """Watch those whose hearts have stopped until they count as dead. SQLite's file has one user."""
        while self.buries and self.store.shared and self.watched <= BURIED:
            self.watched += BEAT
            await self.presence.look()
        return self

    async def settle(self) -> None:
        """Let passes and work alternate, over time, until nothing is due any more."""
        await self.bury_the_dead()
        self.fate.begun = True
        try:
            await self._settle()
        finally:
            self.fate.begun = False

    async def _settle(self) -> None:
        for _ in range(40):
            await self._watch.look()
            due = await self.store.read(leases.due, self.clock(), 100)
            if not due and (next_due := await self.store.read(leases.next_due)) is None:
                return
            for key in due:
                await work_on(self.around, key)
            if not due:
                self.clock.now = max(self.clock.now, next_due)
        raise AssertionError("it does not come to rest")

    async def look(self) -> None:
        """Make one pass."""
        await self._watch.look()

    async def work(self, key: str) -> None:
        """Work on one instance, if it is due."""
        await work_on(self.around, key)

    def close(self) -> None:
        """Let go of what a dead process does not hold either."""
        self.instances.close()
        self.store.hang_up()


def new_cluster() -> FakeDriver:
    """Make the cluster that the world's store knows."""
    return FakeDriver([simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 2)])


async def make_world(database: Database, folder: Path) -> World:
    """Make the data folder and the store that all begin with."""
    cloud = await open_cloud(folder, *new_cluster().inventory, database=database)
    await cloud.stock_keys(8)
    await cloud.plane.close()
    return World(database, folder, cloud.token)


async def rent(process: Process) -> str:
    """Rent a 1080 ti; gives the key."""
    caller = await process.accounts.recognise(process.world.token)
    made, _ = await process.instances.rent(caller, NewInstance(name="one", gpu="1080 ti"))
    return made.key


async def delete(process: Process, key: str) -> None:
    """End it."""
    caller = await process.accounts.recognise(process.world.token)
    await process.instances.delete(caller, key)
