"""The composition root: settings → store → drivers → services → routes and loops.

Everything that is made once is made here, and handed on; nothing below reaches for a global.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from vectordash.server import vault
from vectordash.server.accounts.service import Accounts
from vectordash.server.api.limits import Limit
from vectordash.server.api.middleware import Outermost
from vectordash.server.api.routes import create_app
from vectordash.server.api.services import Services
from vectordash.server.catalogue import store as catalogue
from vectordash.server.clock import BootClock, Clock
from vectordash.server.db import backup, facts
from vectordash.server.db.base import metadata
from vectordash.server.db.migrate import SchemaError, demand_head, head, revision, upgrade
from vectordash.server.db.news import DUE, News
from vectordash.server.db.presence import Presence, all_processes
from vectordash.server.db.restoring import demand_not_moved
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Driver
from vectordash.server.instances.service import Instances
from vectordash.server.instances.stock import Stock
from vectordash.server.instances.waiting import Waiters
from vectordash.server.machines import store as machines
from vectordash.server.reconciler.instance import Cluster
from vectordash.server.reconciler.loop import Reconciler
from vectordash.server.settings import Settings
from vectordash.server.trouble import Trouble
from vectordash.server.vault import Vault, VaultError

log = logging.getLogger(__name__)

TABLES = metadata
"""All tables of this version: importing this module has loaded every slice's."""

FRESH = frozenset({"gpu_types", "images", "processes"})
"""Tables in which a store has rows before anything was done with it."""

_STALE = 10.0
"""Seconds beyond a poll after which a silent reconciler counts as stuck."""


@dataclass(slots=True)
class ControlPlane:
    """The running whole."""

    settings: Settings
    store: Store
    clock: Clock
    presence: Presence
    news: News
    services: Services
    reconciler: Reconciler
    app: Outermost

    async def close(self) -> None:
        """Let go of everything. Instances go on."""
        for cluster in self.reconciler.clusters:
            await cluster.driver.close()
        self.services.instances.close()
        self.store.close()


def open_store(settings: Settings) -> Store:
    """Open the store, ready for use. Raises `Trouble` if it must not be used, and `Unavailable`.

    SQLite's file is made and brought up to date as needed; one with an older version's tables is kept in
    `backups` first. On PostgreSQL that is for the operator to say, since other processes may be using it:
    `vdserver migrate`.
    """
    if settings.database:
        store = Store(settings.store_url)
        demand_head(store.ask(revision), "vdserver migrate")
        return store
    demand_not_moved(settings.data)
    return open_file(settings)


def open_file(settings: Settings) -> Store:
    """Open SQLite's file in the data folder, made and brought up to date as needed."""
    _demand_whole(settings.data)
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would make it readable for all; its companion files take their mode from it.
    (settings.data / "store.db").touch(0o600)
    store = Store(settings.store_url)
    try:
        _keep_old(store, settings.data)
        migrate(store)
    except BaseException:
        store.close()
        raise
    return store


def _demand_whole(data: Path) -> None:
    """Refuse to begin a new cloud where one was that has lost its store."""
    file, key = data / "store.db", data / "encryption.key"
    if file.exists() and file.stat().st_size == 0 and key.exists():
        raise Trouble(
            f"{file} is empty, but {key} shows that a cloud was here: something has emptied it. Put a backup "
            f"there: vdserver restore FILE. If this is to be a new cloud, delete {file}."
        )


def _keep_old(store: Store, data: Path) -> None:
    """Write a backup of a store that is about to be upgraded. Raises `SchemaError` if it cannot be kept."""
    found = store.ask(revision)
    if found is None or found >= head():
        return
    now = BootClock()()
    try:
        file = backup.kept(data, found, now)
        backup.write(store, file, now, TABLES)
    except (OSError, Trouble) as error:
        raise SchemaError(
            f"The store is of revision {found} and was not upgraded, for it could not be kept as it is. "
            f"{error}"
        ) from error
    log.info("the store is of revision %s and will be upgraded; as it was it is kept in %s", found, file)


def migrate(store: Store) -> bool:
    """Bring the tables and the catalogue's figures up to date; True if the tables were not."""
    changed = upgrade(store, TABLES)

    def refresh(connection: Connection) -> None:
        store.alone(connection)
        catalogue.bring_up_to_date(connection)

    store.change(refresh)
    return changed


def clock_of(store: Store) -> Clock:
    """Make the clock that this process goes by: the database's time where several may use it."""
    return BootClock(store.ask(facts.time_of))


def open_vault(settings: Settings, store: Store) -> Vault:
    """Load the encryption key, or make one for an empty store. Raises `VaultError` if it is the wrong one."""
    file = settings.data / "encryption.key"
    made = False
    sealed_with = store.ask(facts.fact, "encryption key")
    loaded = vault.load(settings)
    if loaded is None and sealed_with is not None:
        raise VaultError(
            f"The store's secrets are sealed with the key {sealed_with}, and {file} is missing. Put it back, "
            "or set VECTORDASH_ENCRYPTION_KEYS."
        )
    if loaded is None:
        loaded, made = vault.create_file(file), True
    if sealed_with is not None and not loaded.holds(sealed_with):
        raise VaultError(
            f"The store's secrets are sealed with the key {sealed_with}; loaded is {loaded.current}. Put the "
            f"right key into {file} or VECTORDASH_ENCRYPTION_KEYS."
        )
    if sealed_with is None and store.change(facts.settle, "encryption key", loaded.current) != loaded.current:
        if made:  # another process was quicker, with a key of its own: ours has sealed nothing
            file.unlink()
        return open_vault(settings, store)
    if sealed_with not in {None, loaded.current}:
        store.change(facts.state, "encryption key", loaded.current)
    return loaded


async def join(store: Store, clock: Clock, name: str, driver: Driver, ports: tuple[int, int]) -> Cluster:
    """Take a cluster in, with its machines and GPUs as they are now."""
    identity = await driver.identity()
    inventory = await driver.machines()

    def record(connection: Connection) -> machines.Cluster:
        store.alone(connection)
        now = clock()
        joined = machines.join(connection, now, name, driver.kind, identity, ports)
        # Where another process makes the passes, it has seen the machines later than we, or will.
        if joined.identity == identity and machines.watcher_of(connection, joined.id) is None:
            machines.record_machines(connection, now, joined.id, inventory)
        return joined

    joined = await store.write(record)
    return Cluster(joined.id, joined.name, joined.identity, driver)


def build(
    settings: Settings,
    store: Store,
    keys: Vault,
    clusters: Sequence[Cluster],
    clock: Clock,
    presence: Presence,
) -> ControlPlane:
    """Put the parts together. Which of them run is the command's to say."""
    waiters = Waiters(store)

    def hear(word: str) -> None:
        if word == DUE:
            reconciler.wake()
        else:
            waiters.tell(word)

    news = News(store, hear)

    def wake() -> None:
        reconciler.wake()
        news.say(DUE)

    def tell(key: str) -> None:
        waiters.tell(key)
        news.say(key)

    presence.on_death = wake
    accounts = Accounts(store, clock, settings.payments)
    reconciler = Reconciler(
        store=store,
        clock=clock,
        settings=settings,
        vault=keys,
        clusters=clusters,
        presence=presence,
        stock=Stock(store, keys, settings.key_stock),
        tell=tell,
    )
    instances = Instances(store, clock, settings, keys, accounts, waiters, wake, tell)
    stale = timedelta(seconds=settings.poll + _STALE)

    async def fresh() -> bool:
        if clusters:
            return reconciler.beat is not None and clock() - reconciler.beat < stale
        others = await store.read(all_processes)
        return any(one.kind != "api" and clock() - one.beaten_at < stale for one in others)

    services = Services(
        settings=settings,
        store=store,
        clock=clock,
        accounts=accounts,
        instances=instances,
        token_limit=Limit("token", settings.requests_a_second, settings.request_burst),
        address_limit=Limit(
            "address", settings.anonymous_requests_a_second, settings.anonymous_request_burst
        ),
        reconciler_fresh=fresh,
    )
    return ControlPlane(settings, store, clock, presence, news, services, reconciler, create_app(services))
