"""What can be done with accounts: recognise a caller, describe an account, make users and tokens."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection

from vectordash.server import audit
from vectordash.server.accounts import store as rows
from vectordash.server.accounts.store import Caller, Scope
from vectordash.server.accounts.tokens import hash_of, new_token
from vectordash.server.clock import UNLIMITED, Clock
from vectordash.server.db.session import Store
from vectordash.wire.account import Account, Wallets
from vectordash.wire.errors import BadRequest, IncompleteProfile, Unauthorized

_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}")
_USE_KEPT_EVERY = 60.0
"""Seconds between two writes of a token's last use."""


@dataclass(slots=True)
class Accounts:
    """The accounts of this cloud."""

    store: Store
    clock: Clock
    payments: str
    """`free` or `test`, from the settings."""
    _used: dict[int, datetime] = field(default_factory=dict)
    _kept: datetime | None = None

    async def recognise(self, token: str) -> Caller:
        """Tell whom a token speaks for. Raises `Unauthorized`, the same for every kind of bad token."""
        now = self.clock()
        caller = await self.store.read(rows.caller, hash_of(token), now, UNLIMITED)
        if caller is None:
            raise Unauthorized("This API token is unknown, expired or revoked.")
        self._used[caller.token_id] = now
        return caller

    async def keep_uses(self) -> None:
        """Write when tokens were last used, at most once a minute. The loop calls it now and then."""
        now = self.clock()
        if self._used and (self._kept is None or (now - self._kept).total_seconds() >= _USE_KEPT_EVERY):
            used, self._used, self._kept = self._used, {}, now
            await self.store.write(rows.note_use, used)

    async def describe(self, caller: Caller) -> Account:
        """Describe the caller's account as the reference documents it."""
        wallets = await self.store.read(rows.wallets_of, caller.user_id)
        return Account(
            email=caller.email,
            email_confirmed=caller.email_confirmed,
            payment_method_added=caller.payment_method_added or self.payments == "free",
            vetted_host=caller.vetted_host,
            wallets=Wallets(**wallets),
        )

    def demand_complete(self, caller: Caller) -> None:
        """Raise `IncompleteProfile` unless the caller may create instances."""
        missing, mend = [], []
        if not caller.email_confirmed:
            missing.append("the e-mail address is not confirmed")
            mend.append("Open the link in the e-mail that you were sent, or ask the operator to confirm it.")
        if self.payments != "free" and not caller.payment_method_added:
            missing.append("there is no payment method")
            mend.append("Ask the operator of this cloud to add one.")
        if missing:
            raise IncompleteProfile(" and ".join(missing), " ".join(mend))


def add_user(
    connection: Connection, now: datetime, email: str, *, confirmed: bool = True, payment: bool = True
) -> int:
    """Make an account for an operator's command. Raises `BadRequest`."""
    if not _EMAIL.fullmatch(email):
        raise BadRequest(f"“{email}” is not an e-mail address.")
    user_id = rows.add_user(connection, now, email, confirmed=confirmed, payment=payment)
    if user_id is None:
        raise BadRequest(f"{email.lower()} has an account already.")
    audit.record(connection, now, "operator", "add user", email.lower())
    return user_id


def set_limits(connection: Connection, now: datetime, email: str, limits: Mapping[str, int | None]) -> None:
    """Change the named limits of an account. Raises `BadRequest`."""
    rows.set_limits(connection, _user(connection, email), limits)
    audit.record(connection, now, "operator", "limit user", f"{email.lower()} {dict(limits)}")


def issue_token(
    connection: Connection,
    now: datetime,
    email: str,
    *,
    name: str,
    scope: Scope = "full",
    expires_at: datetime | None = None,
) -> tuple[int, str]:
    """Make a token and give its id and itself: the only moment that it can be read."""
    token = new_token()
    token_id = rows.add_token(
        connection,
        now,
        _user(connection, email),
        name=name,
        token_hash=hash_of(token),
        scope=scope,
        expires_at=expires_at,
    )
    audit.record(connection, now, "operator", "issue token", f"{token_id} “{name}” ({scope}) for {email}")
    return token_id, token


def revoke_token(connection: Connection, now: datetime, token_id: int) -> str:
    """Make a token worthless; gives its owner's e-mail. Raises `BadRequest`."""
    email = rows.revoke_token(connection, now, token_id)
    if email is None:
        raise BadRequest(f"There is no live token {token_id}. `vdserver token list` shows them.")
    audit.record(connection, now, "operator", "revoke token", f"{token_id} of {email}")
    return email


def _user(connection: Connection, email: str) -> int:
    user_id = rows.user_id_of(connection, email)
    if user_id is None:
        raise BadRequest(f"{email} has no account. `vdserver user list` shows who has.")
    return user_id
