"""Tables of the catalogue."""

from sqlalchemy import Boolean, CheckConstraint, Column, Integer, Table, Text, TypedColumns, UniqueConstraint

from vectordash.server.db.base import metadata


class GpuTypeColumns(TypedColumns):
    """A GPU type and its figures, from the maker or, for an unknown card, from its driver."""

    name = Column(Text, primary_key=True)
    lower_name = Column(Text, nullable=False)
    gigaflops = Column(Integer, nullable=False)
    """FP32. An integer, so that 11.34 teraflops stay exactly that."""
    vram = Column(Integer, nullable=False)
    """GB."""
    generation = Column(Text, nullable=False)
    asic = Column(Boolean, nullable=False)
    source = Column(Text, nullable=False)
    position = Column(Integer, nullable=False)
    """Where it stands in lists."""


gpu_types = Table(
    "gpu_types",
    metadata,
    GpuTypeColumns,
    UniqueConstraint("lower_name"),
    CheckConstraint("gigaflops >= 0 and vram >= 0", name="figures"),
)


class ImageColumns(TypedColumns):
    """Something that can be loaded on an instance."""

    name = Column(Text, primary_key=True)
    description = Column(Text, nullable=False)
    position = Column(Integer, nullable=False)


images = Table("images", metadata, ImageColumns)
