"""What can be done with accounts: recognise a caller, describe an account, make users and tokens."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection

from vectordash.server import audit
from vectordash.server.accounts import store as rows
from vectordash.server.accounts.store import Caller, Limits, Scope
from vectordash.server.accounts.tokens import hash_of, new_token
from vectordash.server.clock import UNLIMITED, Clock
from vectordash.server.db.session import Store
from vectordash.wire.account import Account, Wallets
from vectordash.wire.errors import BadRequest, IncompleteProfile, Unauthorized

_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}")
_LONGEST_EMAIL = 254
_LONGEST_NAME = 100
_MOST = 1_000_000
"""The largest limit."""
_USE_KEPT_EVERY = 60.0
"""Seconds between two writes of a token's last use."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Who is to have an account and a token."""

    email: str
    token_name: str
    limits: Mapping[str, int | None]
    """Those that the account gets of its own."""


@dataclass(frozen=True, slots=True)
class Invited:
    """What came of invitations."""

    tokens: list[tuple[str, str]]
    """(e-mail, token) of each account that was made; the only moment that the tokens can be read."""
    known: list[str]
    """Those that had an account already, and keep it as it is."""


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
            await self.store.write(rows.note_use, dict(sorted(used.items())))

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


def demand_email(email: str) -> str:
    """Give an e-mail address as it is kept, in lower case. Raises `BadRequest`."""
    lower = email.lower()
    if not _EMAIL.fullmatch(lower) or not lower.isprintable() or len(lower) > _LONGEST_EMAIL:
        raise BadRequest(f"“{email}” is not an e-mail address.")
    return lower


def add_user(
    connection: Connection, now: datetime, email: str, *, confirmed: bool = True, payment: bool = True
) -> int:
    """Make an account for an operator's command. Raises `BadRequest`."""
    address = demand_email(email)
    user_id = rows.add_user(connection, now, address, confirmed=confirmed, payment=payment)
    if user_id is None:
        raise BadRequest(
            f"{address} has an account already. A token for it is made by: vdserver token new {address}"
        )
    audit.record(connection, now, "operator", "add user", address)
    return user_id


def invite(connection: Connection, now: datetime, invitations: Sequence[Invitation]) -> Invited:
    """Make an account and a token for each who has no account, all or none. Raises `BadRequest`."""
    tokens, known = [], []
    for one in invitations:
        if rows.user_id_of(connection, one.email) is not None:
            known.append(one.email)
            continue
        add_user(connection, now, one.email)
        if one.limits:
            set_limits(connection, now, one.email, one.limits)
        tokens.append((one.email, issue_token(connection, now, one.email, name=one.token_name)[1]))
    return Invited(tokens, known)


def limits_of(connection: Connection, email: str) -> Limits:
    """Give the limits that an account has of its own. Raises `BadRequest`."""
    return rows.limits_of(connection, _user(connection, email))


def set_limits(connection: Connection, now: datetime, email: str, limits: Mapping[str, int | None]) -> None:
    """Change the named limits of an account; None: as the settings say. Raises `BadRequest`."""
    for name, limit in limits.items():
        if limit is not None and not 0 <= limit <= _MOST:
            raise BadRequest(f"{name} takes a number from 0 (any number) to {_MOST}, not {limit}.")
    rows.set_limits(connection, _user(connection, email), limits)
    audit.record(connection, now, "operator", "limit user", f"{email.lower()} {dict(limits)}")


def demand_token_name(name: str) -> str:
    """Give a token's name. Raises `BadRequest`."""
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise BadRequest(f"A token's name is 1 to {_LONGEST_NAME} printable letters.")
    return name


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
        name=demand_token_name(name),
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
        raise BadRequest(f"There is no live token {token_id}. They are shown by: vdserver token list")
    audit.record(connection, now, "operator", "revoke token", f"{token_id} of {email}")
    return email


def _user(connection: Connection, email: str) -> int:
    user_id = rows.user_id_of(connection, email)
    if user_id is None:
        raise BadRequest(f"{email} has no account. Make one with: vdserver user add {email}")
    return user_id
