"""Every question asked of, and change made to, the accounts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import Connection, bindparam, func, insert, select, update

from vectordash.server.accounts.tables import tokens, users, wallets

Scope = Literal["full", "read"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an account may use; None: as the settings say, 0: any amount."""

    gpus_at_once: int | None = None
    hours_an_instance: int | None = None
    gpu_hours_a_month: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a token speaks for, and what it may do."""

    user_id: int
    email: str
    token_id: int
    scope: Scope
    email_confirmed: bool
    payment_method_added: bool
    vetted_host: bool
    limits: Limits


@dataclass(frozen=True, slots=True)
class UserRow:
    """A user, for lists."""

    id: int
    email: str
    email_confirmed: bool
    payment_method_added: bool
    limits: Limits
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token, for lists: never the token itself."""

    id: int
    email: str
    name: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


_CALLER = (
    select(
        users.c.id,
        users.c.email,
        tokens.c.id,
        tokens.c.scope,
        users.c.email_confirmed,
        users.c.payment_method_added,
        users.c.vetted_host,
        users.c.gpus_at_once,
        users.c.hours_an_instance,
        users.c.gpu_hours_a_month,
    )
    .join_from(tokens, users, tokens.c.user_id == users.c.id)
    .where(
        tokens.c.hash == bindparam("hash"),
        tokens.c.revoked_at.is_(None),
        func.coalesce(tokens.c.expires_at, bindparam("never", type_=tokens.c.expires_at.type))
        > bindparam("now", type_=tokens.c.expires_at.type),
    )
)


def caller(connection: Connection, token_hash: str, now: datetime, never: datetime) -> Caller | None:
    """Whom does the token with this hash speak for, if it is neither revoked nor expired?"""
    row = connection.execute(_CALLER, {"hash": token_hash, "now": now, "never": never}).one_or_none()
    if row is None:
        return None
    user_id, email, token_id, scope, confirmed, paid, vetted, *limits = row
    return Caller(user_id, email, token_id, cast("Scope", scope), confirmed, paid, vetted, Limits(*limits))


def lock_user(connection: Connection, user_id: int) -> None:
    """Keep every other transaction that does the same waiting until this one ends."""
    connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update(key_share=True))


def wallets_of(connection: Connection, user_id: int) -> dict[str, str]:
    """Which addresses has the user added, by currency?"""
    query = select(wallets.c.currency, wallets.c.address).where(wallets.c.user_id == user_id)
    return dict(iter(connection.execute(query)))


def user_id_of(connection: Connection, email: str) -> int | None:
    """Which user has this e-mail address?"""
    return connection.execute(select(users.c.id).where(users.c.email == email.lower())).scalar()


def all_users(connection: Connection) -> list[UserRow]:
    """Who has an account?"""
    query = select(
        users.c.id,
        users.c.email,
        users.c.email_confirmed,
        users.c.payment_method_added,
        users.c.created_at,
        users.c.gpus_at_once,
        users.c.hours_an_instance,
        users.c.gpu_hours_a_month,
    ).order_by(users.c.id)
    return [
        UserRow(id_, email, confirmed, paid, Limits(*limits), created)
        for id_, email, confirmed, paid, created, *limits in connection.execute(query)
    ]


def limits_of(connection: Connection, user_id: int) -> Limits:
    """Which limits has this account of its own?"""
    query = select(users.c.gpus_at_once, users.c.hours_an_instance, users.c.gpu_hours_a_month)
    return Limits(*connection.execute(query.where(users.c.id == user_id)).one())


def add_user(
    connection: Connection, now: datetime, email: str, *, confirmed: bool, payment: bool
) -> int | None:
    """Make an account, or give None if the address has one."""
    if user_id_of(connection, email) is not None:
        return None
    made = connection.execute(
        insert(users)
        .values(email=email.lower(), email_confirmed=confirmed, payment_method_added=payment, created_at=now)
        .returning(users.c.id)
    )
    return made.scalar_one()


def set_limits(connection: Connection, user_id: int, limits: Mapping[str, int | None]) -> None:
    """Change the named limits of one account; None lets the setting rule again."""
    connection.execute(update(users).where(users.c.id == user_id).values(**limits))


def add_token(
    connection: Connection,
    now: datetime,
    user_id: int,
    *,
    name: str,
    token_hash: str,
    scope: Scope,
    expires_at: datetime | None,
) -> int:
    """Keep a new token's hash."""
    made = connection.execute(
        insert(tokens)
        .values(
            user_id=user_id,
            name=name,
            hash=token_hash,
            scope=scope,
            created_at=now,
            expires_at=expires_at,
        )
        .returning(tokens.c.id)
    )
    return made.scalar_one()


def all_tokens(connection: Connection, user_id: int | None) -> list[TokenRow]:
    """Which tokens are there, of one user or of all?"""
    query = (
        select(
            tokens.c.id,
            users.c.email,
            tokens.c.name,
            tokens.c.scope,
            tokens.c.created_at,
            tokens.c.expires_at,
            tokens.c.revoked_at,
            tokens.c.used_at,
        )
        .join_from(tokens, users, tokens.c.user_id == users.c.id)
        .order_by(tokens.c.id)
    )
    if user_id is not None:
        query = query.where(tokens.c.user_id == user_id)
    return [TokenRow(*row) for row in connection.execute(query)]


def revoke_token(connection: Connection, now: datetime, token_id: int) -> str | None:
    """Make a token worthless from now on; gives its owner's e-mail, or None if there is no live one."""
    revoked = connection.execute(
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        .values(revoked_at=now)
        .returning(tokens.c.user_id)
    ).scalar()
    if revoked is None:
        return None
    return connection.execute(select(users.c.email).where(users.c.id == revoked)).scalar_one()


def note_use(connection: Connection, used: Mapping[int, datetime]) -> None:
    """Keep when tokens were last used."""
    connection.execute(
        update(tokens).where(tokens.c.id == bindparam("token")).values(used_at=bindparam("at")),
        [{"token": token, "at": at} for token, at in used.items()],
    )
