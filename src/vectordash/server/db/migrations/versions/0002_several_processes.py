"""Several processes share a store; what an orphan was made from is kept, for the operator to decide."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table of processes, and the columns that name one."""
    op.create_table(
        "processes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beat", sa.Integer(), nullable=False),
        sa.Column("beaten_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_processes")),
    )
    op.add_column("instances", sa.Column("lease_holder", sa.Text(), nullable=True))
    op.execute("update instances set lease_until = null")  # leases of a program that has ended
    op.add_column("clusters", sa.Column("watcher", sa.Text(), nullable=True))
    op.add_column("orphans", sa.Column("spec", sa.LargeBinary(), nullable=True))
    op.add_column("orphans", sa.Column("purge", sa.Boolean(), server_default=sa.false(), nullable=False))
