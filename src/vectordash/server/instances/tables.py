"""Tables of the instances.

Services write desired columns (`name`, `ended_at` through `store.end`), the reconciler observed ones
(`active_at`, `unseen_since`, `attempts.…`), and nobody else writes any.
"""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    TypedColumns,
    UniqueConstraint,
    text,
)

from vectordash.server.db.base import Instant, Money, metadata

LIVE = text("ended_at is null")
UNRELEASED = text("released_at is null")
WANTED = text("due_at is not null")


class InstanceColumns(TypedColumns):
    """What a renter rents."""

    key = Column(Text, primary_key=True)
    user_id = Column(Integer, ForeignKey("users.id"), nullable=False)
    name = Column(Text, nullable=False)
    gpu_type = Column(Text, ForeignKey("gpu_types.name"), nullable=False)
    image = Column(Text, nullable=False)
    price = Column(Money, nullable=False)
    """Dollars an hour. May fall while pending, never rises."""
    until = Column(Instant, nullable=False)
    """What was promised: the GPU is available until then."""
    created_at = Column(Instant, nullable=False)
    ends_at = Column(Instant, nullable=True)
    """When the account's own limit of hours ends it; null: never."""
    active_at = Column(Instant, nullable=True)
    """When a login first worked: billing begins."""
    ended_at = Column(Instant, nullable=True)
    end_reason = Column(Text, nullable=True)
    error = Column(Boolean, nullable=False, default=False)
    well_since = Column(Instant, nullable=True)
    """When it became active, or came back into sight."""
    unseen_since = Column(Instant, nullable=True)
    """Last seen well, while it is out of sight; the charge counts to here."""
    lost_at = Column(Instant, nullable=True)
    """When it will count as lost, while it is out of sight."""
    free_seconds = Column(Integer, nullable=False, default=0)
    """Time out of sight that it came back from: not charged."""
    restarts = Column(Integer, nullable=False, default=0)
    """Failed starts since it was last well."""
    pem = Column(LargeBinary, nullable=True)
    """Sealed; erased once everything of it is gone."""
    public_key = Column(Text, nullable=False)
    attempt = Column(Integer, nullable=False)
    """The number of the attempt that it stands on."""
    generation = Column(Integer, nullable=False, default=0)
    """Raised by every change of what is desired, so that no wake-up is lost."""
    due_at = Column(Instant, nullable=True)
    """When the reconciler should look at it next; null: it rests."""
    lease_until = Column(Instant, nullable=True)
    lease_holder = Column(Text, nullable=True)
    """The process (`db/presence.py`); without it the lease is void."""
    lease_version = Column(Integer, nullable=False, default=0)
    failures = Column(Integer, nullable=False, default=0)
    """Steps in a row that came to nothing, for the back-off."""


instances = Table(
    "instances",
    metadata,
    InstanceColumns,
    CheckConstraint("length(name) between 1 and 63", name="name"),
    CheckConstraint("price between 0 and 1000000000000", name="price"),
    CheckConstraint("free_seconds >= 0", name="free_seconds"),
    CheckConstraint("(ended_at is null) = (end_reason is null)", name="end_reason"),
    CheckConstraint("ended_at is not null or not error", name="error"),
    CheckConstraint("(unseen_since is null) = (lost_at is null)", name="sight"),
    CheckConstraint(
        "end_reason in ('deleted', 'not_started', 'lost', 'time_limit', 'reclaimed', 'broken')", name="reason"
    ),
)
Index(
    "ix_instances_live", instances.c.user_id, instances.c.created_at, sqlite_where=LIVE, postgresql_where=LIVE
)
Index("ix_instances_user", instances.c.user_id, instances.c.created_at)
Index("ix_instances_due", instances.c.due_at, sqlite_where=WANTED, postgresql_where=WANTED)
Index("ix_instances_ends", instances.c.ends_at, sqlite_where=LIVE, postgresql_where=LIVE)


class AttemptColumns(TypedColumns):
    """One try to run an instance on a given GPU; holds the GPU and the port until released."""

    id = Column(Integer, primary_key=True)
    instance = Column(Text, ForeignKey("instances.key"), nullable=False)
    number = Column(Integer, nullable=False)
    gpu_id = Column(Integer, ForeignKey("gpus.id"), nullable=False)
    machine_id = Column(Integer, ForeignKey("machines.id"), nullable=False, index=True)
    driver_name = Column(Text, nullable=False)
    hostname = Column(Text, nullable=False)
    """Stays what it was when the instance is renamed."""
    bound_address = Column(Text, nullable=False)
    address = Column(Text, nullable=False)
    probe_address = Column(Text, nullable=False)
    port = Column(Integer, nullable=False)
    host_key = Column(LargeBinary, nullable=True)
    """Sealed; erased when released."""
    host_public_key = Column(Text, nullable=False)
    cpu = Column(Text, nullable=False)
    cores = Column(Integer, nullable=False)
    ram = Column(Integer, nullable=False)
    storage = Column(Integer, nullable=False)
    made_at = Column(Instant, nullable=False)
    deadline = Column(Instant, nullable=True)
    """By when a login must have worked; set by the first step."""
    failed_at = Column(Instant, nullable=True)
    failure = Column(Text, nullable=True)
    """Why it was given up; null while it stands."""
    again = Column(Boolean, nullable=False, default=False)
    """Given up, but the same GPU is to be tried once more."""
    released_at = Column(Instant, nullable=True)


attempts = Table(
    "attempts",
    metadata,
    AttemptColumns,
    UniqueConstraint("instance", "number"),
    UniqueConstraint("driver_name"),
    CheckConstraint("number between 1 and 9", name="number"),
    CheckConstraint("port between 1 and 65535", name="port"),
    CheckConstraint("ram >= 1 and storage >= 1 and cores >= 1", name="share"),
)
Index(
    "uq_attempts_gpu",
    attempts.c.gpu_id,
    unique=True,
    sqlite_where=UNRELEASED,
    postgresql_where=UNRELEASED,
)
Index(
    "uq_attempts_port",
    attempts.c.machine_id,
    attempts.c.bound_address,
    attempts.c.port,
    unique=True,
    sqlite_where=UNRELEASED,
    postgresql_where=UNRELEASED,
)


class EventColumns(TypedColumns):
    """Something that happened to an instance, told to its renter."""

    id = Column(Integer, primary_key=True)
    instance = Column(Text, ForeignKey("instances.key"), nullable=False, index=True)
    time = Column(Instant, nullable=False)
    kind = Column(Text, nullable=False)
    attempt = Column(Integer, nullable=True)
    message = Column(Text, nullable=False)


events = Table("events", metadata, EventColumns)


class IdempotencyColumns(TypedColumns):
    """A key that a renter gave to a POST, and the instance it stands for. Never a response."""

    user_id = Column(Integer, ForeignKey("users.id"), primary_key=True)
    key = Column(Text, primary_key=True)
    body_hash = Column(Text, nullable=False)
    instance = Column(Text, nullable=False)
    created_at = Column(Instant, nullable=False, index=True)


idempotency = Table(
    "idempotency",
    metadata,
    IdempotencyColumns,
    ForeignKeyConstraint(["instance"], ["instances.key"]),
    CheckConstraint("length(key) between 1 and 255", name="key"),
)


class KeyPairColumns(TypedColumns):
    """An RSA key pair made ahead of its instance."""

    id = Column(Integer, primary_key=True)
    pem = Column(LargeBinary, nullable=False)
    """Sealed."""
    public_key = Column(Text, nullable=False)


key_pairs = Table("key_pairs", metadata, KeyPairColumns)
