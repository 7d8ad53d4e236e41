"""What can be rented now: one row a GPU type, showing the very GPU that a POST would take."""

from decimal import Decimal

from msgspec import Struct


class Gpu(Struct, frozen=True):
    """The best offer of one type."""

    type: str
    teraflops: Decimal
    """FP32, from the maker's data sheet."""
    vram: int
    """GB."""
    generation: str
    hourly_price: Decimal
    max_availability: str
    """`unlimited` or `YYYY-MM-DD HH:MM:SS`, UTC."""
    asic: bool


class Gpus(Struct, frozen=True):
    """`GET /api/gpus`."""

    gpus: list[Gpu]
