"""The composition root: settings → store → drivers → services → routes and loops.

Everything that is made once is made here, and handed on; nothing below reaches for a global.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from vectordash.server import vault
from vectordash.server.accounts.service import Accounts
from vectordash.server.api.limits import Limit
from vectordash.server.api.middleware import Outermost
from vectordash.server.api.routes import create_app
from vectordash.server.api.services import Services
from vectordash.server.catalogue import store as catalogue
from vectordash.server.clock import Clock
from vectordash.server.db import facts
from vectordash.server.db.base import metadata
from vectordash.server.db.migrate import upgrade
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Driver
from vectordash.server.instances.service import Instances
from vectordash.server.instances.stock import Stock
from vectordash.server.instances.waiting import Waiters
from vectordash.server.machines import store as machines
from vectordash.server.reconciler.instance import Cluster
from vectordash.server.reconciler.loop import Reconciler
from vectordash.server.settings import Settings
from vectordash.server.vault import Vault, VaultError

log = logging.getLogger(__name__)

TABLES = metadata
"""All tables of this version: importing this module has loaded every slice's."""

_STALE = 10.0
"""Seconds beyond a poll after which a silent reconciler counts as stuck."""


@dataclass(slots=True)
class ControlPlane:
    """The running whole."""

    settings: Settings
    store: Store
    clock: Clock
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
    """Open the store of a data folder, made and brought up to date as needed."""
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would make it readable for all; its companion files take their mode from it.
    (settings.data / "store.db").touch(0o600)
    store = Store(settings.database)
    upgrade(store, TABLES)
    store.change(catalogue.bring_up_to_date)
    return store


def open_vault(settings: Settings, store: Store) -> Vault:
    """Load the encryption key, or make one for an empty store. Raises `VaultError` if it is the wrong one."""
    file = settings.data / "encryption.key"
    sealed_with = store.ask(facts.fact, "encryption key")
    if settings.encryption_keys:
        loaded = vault.from_text(settings.encryption_keys)
    elif file.exists():
        loaded = vault.from_file(file)
    elif sealed_with is None:
        loaded = vault.create_file(file)
    else:
        raise VaultError(
            f"The store's secrets are sealed with the key {sealed_with}, and {file} is missing. Put it back, "
            "or set VECTORDASH_ENCRYPTION_KEYS."
        )
    if sealed_with is not None and not loaded.holds(sealed_with):
        raise VaultError(
            f"The store's secrets are sealed with the key {sealed_with}; loaded is {loaded.current}. Put the "
            f"right key into {file} or VECTORDASH_ENCRYPTION_KEYS."
        )
    if sealed_with != loaded.current:
        store.change(facts.state, "encryption key", loaded.current)
    return loaded


async def join(store: Store, clock: Clock, name: str, driver: Driver, ports: tuple[int, int]) -> Cluster:
    """Take a cluster in, with its machines and GPUs as they are now."""
    identity = await driver.identity()
    inventory = await driver.machines()

    def record(connection: Connection) -> machines.Cluster:
        now = clock()
        joined = machines.join(connection, now, name, driver.kind, identity, ports)
        if joined.identity == identity:
            machines.record_machines(connection, now, joined.id, inventory)
        return joined

    joined = await store.write(record)
    return Cluster(joined.id, joined.name, joined.identity, driver)


def build(
    settings: Settings, store: Store, keys: Vault, clusters: Sequence[Cluster], clock: Clock
) -> ControlPlane:
    """Put the parts together."""
    accounts = Accounts(store, clock, settings.payments)
    waiters = Waiters(store)
    reconciler = Reconciler(
        store=store,
        clock=clock,
        settings=settings,
        vault=keys,
        clusters=clusters,
        waiters=waiters,
        accounts=accounts,
        stock=Stock(store, keys, settings.key_stock),
    )
    instances = Instances(store, clock, settings, keys, accounts, waiters, reconciler.wake)

    def fresh() -> bool:
        stale = timedelta(seconds=settings.poll + _STALE)
        return reconciler.beat is not None and clock() - reconciler.beat < stale

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
    return ControlPlane(settings, store, clock, services, reconciler, create_app(services))
