"""What the routes are given: the services of this cloud, in one place."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vectordash.server.accounts.service import Accounts
from vectordash.server.api.limits import Limit
from vectordash.server.clock import Clock
from vectordash.server.db.session import Store
from vectordash.server.instances.service import Instances
from vectordash.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The table of contents of the control plane."""

    settings: Settings
    store: Store
    clock: Clock
    accounts: Accounts
    instances: Instances
    token_limit: Limit
    address_limit: Limit
    reconciler_fresh: Callable[[], Awaitable[bool]]
    """Whether a reconciler went round lately."""
