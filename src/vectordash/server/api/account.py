"""`/api/account`."""

from litestar import get
from litestar.di import NamedDependency

from vectordash.server.accounts.service import Accounts
from vectordash.server.accounts.store import Caller
from vectordash.wire.account import Account


@get("/api/account")
async def get_account(accounts: NamedDependency[Accounts], caller: NamedDependency[Caller]) -> Account:
    """Describe the account that the token speaks for."""
    return await accounts.describe(caller)
