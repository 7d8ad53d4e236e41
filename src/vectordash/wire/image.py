"""What can be loaded on an instance."""

from msgspec import Struct


class Image(Struct, frozen=True):
    """One image."""

    name: str
    description: str


class Images(Struct, frozen=True):
    """`GET /api/images`."""

    images: list[Image]
