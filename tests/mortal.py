"""A process that dies when a test says so, and the process that comes after it.

`Fate` counts the moments after which something is different outside the process: a change of the store was
made, or a call of the driver that does something. To die anywhere between two of them is the same as to die
right after the first. At its appointed moment it raises `Killed`, which nothing catches. The store's file
and the cluster live on; the rest is made anew.
"""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud import HandClock, open_cloud
from vectordash.server import app
from vectordash.server.accounts.service import Accounts
from vectordash.server.db.session import Store
from vectordash.server.drivers.fake import FakeDriver, simple_machine
from vectordash.server.instances import progress
from vectordash.server.instances.service import Instances
from vectordash.server.instances.waiting import Waiters
from vectordash.server.reconciler.instance import Cluster, Surroundings, work_on
from vectordash.server.reconciler.machine import Watch
from vectordash.server.settings import Settings
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
class Process:
    """One life of a control plane's process."""

    settings: Settings
    token: str
    clock: HandClock
    driver: FakeDriver
    fate: Fate = field(default_factory=Fate)
    alone: bool = True
    """No other process may use the store, so its leases are a dead one's."""

    def __post_init__(self) -> None:
        self.store = MortalStore(self.settings.database, readers=1)
        self.store.fate = self.fate
        vault = app.open_vault(self.settings, self.store)
        if self.alone:
            self.store.change(progress.break_leases)
        cluster = Cluster(1, "fake", self.driver.name, MortalDriver(self.driver, self.fate))  # type: ignore[arg-type]
        self.around = Surroundings(self.store, self.clock, vault, {1: cluster})
        self._watch = Watch(self.store, self.clock, cluster, self.settings.grace, 30.0)
        accounts = Accounts(self.store, self.clock, self.settings.payments)
        self.accounts = accounts
        self.instances = Instances(
            self.store, self.clock, self.settings, vault, accounts, Waiters(self.store), lambda: None
        )

    async def settle(self) -> None:
        """Let passes and work alternate, over time, until nothing is due any more."""
        self.fate.begun = True
        try:
            await self._settle()
        finally:
            self.fate.begun = False

    async def _settle(self) -> None:
        for _ in range(40):
            await self._watch.look()
            due = await self.store.read(progress.due, self.clock(), 100)
            if not due and (next_due := await self.store.read(progress.next_due)) is None:
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
        self.store.close()


@dataclass
class Template:
    """A data folder to copy, with two 1080 ti on offer and keys in stock."""

    folder: Path
    token: str
    _copies: Any = field(default_factory=itertools.count)

    def copy(self) -> Settings:
        """Give the settings of a copy of its own."""
        copy = self.folder.with_name(f"copy{next(self._copies)}")
        shutil.copytree(self.folder, copy)
        return Settings(data=copy, key_stock=0)


def new_cluster() -> FakeDriver:
    """Make the cluster that the template knows."""
    return FakeDriver([simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 2)])


async def make_template(folder: Path) -> Template:
    """Make the data folder that all begin with."""
    cloud = await open_cloud(folder, *new_cluster().inventory)
    await cloud.stock_keys(8)
    await cloud.plane.close()
    return Template(folder, cloud.token)


async def rent(process: Process) -> str:
    """Rent a 1080 ti; gives the key."""
    caller = await process.accounts.recognise(process.token)
    made, _ = await process.instances.rent(caller, NewInstance(name="one", gpu="1080 ti"))
    return made.key


async def delete(process: Process, key: str) -> None:
    """End it."""
    caller = await process.accounts.recognise(process.token)
    await process.instances.delete(caller, key)
