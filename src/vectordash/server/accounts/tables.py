"""Tables of the accounts."""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    Table,
    Text,
    TypedColumns,
    UniqueConstraint,
)

from vectordash.server.db.base import Instant, metadata


class UserColumns(TypedColumns):
    """A person with an account."""

    id = Column(Integer, primary_key=True)
    email = Column(Text, nullable=False)
    """Lower case."""
    email_confirmed = Column(Boolean, nullable=False, default=False)
    payment_method_added = Column(Boolean, nullable=False, default=False)
    vetted_host = Column(Boolean, nullable=False, default=False)
    gpus_at_once = Column(Integer, nullable=True)
    """A limit of this account alone; null: the setting's. 0: any number."""
    hours_an_instance = Column(Integer, nullable=True)
    gpu_hours_a_month = Column(Integer, nullable=True)
    created_at = Column(Instant, nullable=False)


users = Table(
    "users",
    metadata,
    UserColumns,
    UniqueConstraint("email"),
    CheckConstraint("length(email) between 3 and 254", name="email"),
    CheckConstraint("gpus_at_once >= 0 and hours_an_instance >= 0 and gpu_hours_a_month >= 0", name="limits"),
)


class WalletColumns(TypedColumns):
    """Where a user may be paid."""

    user_id = Column(Integer, ForeignKey("users.id"), primary_key=True)
    currency = Column(Text, primary_key=True)
    address = Column(Text, nullable=False)


wallets = Table(
    "wallets",
    metadata,
    WalletColumns,
    CheckConstraint("currency in ('bitcoin', 'ethereum', 'litecoin')", name="currency"),
)


class TokenColumns(TypedColumns):
    """An API token: its hash, never the token."""

    id = Column(Integer, primary_key=True)
    user_id = Column(Integer, ForeignKey("users.id"), nullable=False, index=True)
    name = Column(Text, nullable=False)
    hash = Column(Text, nullable=False)
    """SHA-256 of the token, hex. A token is 256 random bits, so a slow hash would add nothing."""
    scope = Column(Text, nullable=False)
    created_at = Column(Instant, nullable=False)
    expires_at = Column(Instant, nullable=True)
    revoked_at = Column(Instant, nullable=True)
    used_at = Column(Instant, nullable=True)
    """Kept to the minute."""


tokens = Table(
    "tokens",
    metadata,
    TokenColumns,
    UniqueConstraint("hash"),
    CheckConstraint("scope in ('full', 'read')", name="scope"),
)
