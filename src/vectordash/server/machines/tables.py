"""Tables of clusters, machines and GPUs.

Desired columns are written by the operator's commands (`listed`, `price`, `available_until`,
`reserved_until`), observed ones by the reconciler's machine pass (`present`, `online`, `seen_at`), `free` by
whoever holds and releases a GPU (`instances/holding.py`).
"""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    TypedColumns,
    UniqueConstraint,
    false,
    text,
)

from vectordash.server.db.base import Instant, Money, metadata

OFFERABLE = text("free and listed and present and not suspect")
"""The condition of the offers' indexes and of every query that wants them, to the letter: written as text
so that both databases recognise it."""


class ClusterColumns(TypedColumns):
    """Something that a driver drives."""

    id = Column(Integer, primary_key=True)
    name = Column(Text, nullable=False)
    driver = Column(Text, nullable=False)
    identity = Column(Text, nullable=False)
    """What the cluster said it is when it was joined. If it says something else, nothing is touched."""
    first_port = Column(Integer, nullable=False)
    last_port = Column(Integer, nullable=False)
    created_at = Column(Instant, nullable=False)
    watcher = Column(Text, nullable=True)
    """The process (`db/presence.py`) that makes the passes; without it another one takes over."""


clusters = Table(
    "clusters",
    metadata,
    ClusterColumns,
    UniqueConstraint("name"),
    UniqueConstraint("identity"),
    CheckConstraint("first_port between 1 and last_port and last_port <= 65535", name="ports"),
)


class MachineColumns(TypedColumns):
    """A computer with GPUs, as it was last seen."""

    id = Column(Integer, primary_key=True)
    cluster_id = Column(Integer, ForeignKey("clusters.id"), nullable=False)
    name = Column(Text, nullable=False)
    online = Column(Boolean, nullable=False)
    cpu = Column(Text, nullable=False)
    cores = Column(Integer, nullable=False)
    ram = Column(Integer, nullable=False)
    """GB."""
    disk = Column(Integer, nullable=False)
    """GB."""
    bound_address = Column(Text, nullable=False)
    """What instances bind."""
    address = Column(Text, nullable=False)
    """What renters are told."""
    probe_address = Column(Text, nullable=False)
    """Where the control plane tries to log in."""
    last_given_port = Column(Integer, nullable=False, default=0)
    """Ports are given in a circle, so the one given least recently is given next."""
    seen_at = Column(Instant, nullable=False)
    """When a pass last saw it, and everything on it, well."""


machines = Table("machines", metadata, MachineColumns, UniqueConstraint("cluster_id", "name"))


class GpuColumns(TypedColumns):
    """One physical card and its listing."""

    id = Column(Integer, primary_key=True)
    """Shown to renters; never used again."""
    machine_id = Column(Integer, ForeignKey("machines.id"), nullable=False, index=True)
    uuid = Column(Text, nullable=False)
    model = Column(Text, nullable=False)
    """The driver's name of it."""
    type = Column(Text, ForeignKey("gpu_types.name"), nullable=False)
    vram = Column(Integer, nullable=False)
    simulated = Column(Boolean, nullable=False)
    listed = Column(Boolean, nullable=False, default=False)
    price = Column(Money, nullable=False)
    """Dollars an hour."""
    available_until = Column(Instant, nullable=False)
    reserved_until = Column(Instant, nullable=True)
    """The operator keeps it for itself until then."""
    present = Column(Boolean, nullable=False)
    """Its machine is online and reports it."""
    free = Column(Boolean, nullable=False, default=True)
    """No attempt holds it."""
    suspect = Column(Boolean, nullable=False, default=False)
    """Something failed on it: not offered until it was seen well again."""
    failures = Column(Integer, nullable=False, default=0)
    """What failed on it since an instance last came up. From three on, only the operator offers it again."""
    suspect_why = Column(Text, nullable=False, default="")


gpus = Table(
    "gpus",
    metadata,
    GpuColumns,
    UniqueConstraint("uuid"),
    CheckConstraint("price between 0 and 1000000000000", name="price"),
    sqlite_autoincrement=True,
)

Index(
    "ix_gpus_latest",
    gpus.c.type,
    gpus.c.available_until.desc(),
    gpus.c.price,
    gpus.c.id,
    sqlite_where=OFFERABLE,
    postgresql_where=OFFERABLE,
)
Index(
    "ix_gpus_cheapest",
    gpus.c.type,
    gpus.c.price,
    gpus.c.available_until.desc(),
    gpus.c.id,
    sqlite_where=OFFERABLE,
    postgresql_where=OFFERABLE,
)


class OrphanColumns(TypedColumns):
    """Something of ours on a cluster that the store has never heard of: reported, never removed by itself."""

    cluster_id = Column(Integer, ForeignKey("clusters.id"), primary_key=True)
    name = Column(Text, primary_key=True)
    """Its driver name."""
    gpu_uuids = Column(Text, nullable=False)
    """Cards that it holds, separated by spaces; withheld from offers."""
    port = Column(Integer, nullable=True)
    """SSH port that it holds; withheld likewise."""
    found_at = Column(Instant, nullable=False)
    spec = Column(LargeBinary, nullable=True)
    """Sealed: what it was made from, as far as its cluster can tell; with it, it can be adopted."""
    purge = Column(Boolean, nullable=False, default=False, server_default=false())
    """The operator has decided that it is to be removed."""


orphans = Table("orphans", metadata, OrphanColumns)
