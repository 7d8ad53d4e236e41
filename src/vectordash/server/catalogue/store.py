"""Every question asked of, and change made to, the catalogue."""

from sqlalchemy import Connection, func, insert, select, update

from vectordash.server.catalogue.figures import GPU_TYPES, IMAGES, GpuType
from vectordash.server.catalogue.naming import type_of, unknown_type
from vectordash.server.catalogue.tables import gpu_types, images
from vectordash.wire.errors import UnknownGpu, UnknownImage
from vectordash.wire.image import Image


def bring_up_to_date(connection: Connection) -> None:
    """Write the figures that this version knows; types and images that others added stay."""
    known = set(connection.execute(select(gpu_types.c.name)).scalars())
    for position, kind in enumerate(GPU_TYPES):
        values = _values(kind) | {"position": position}
        if kind.name in known:
            connection.execute(update(gpu_types).where(gpu_types.c.name == kind.name).values(values))
        else:
            connection.execute(insert(gpu_types).values(values))
    loaded = set(connection.execute(select(images.c.name)).scalars())
    for position, image in enumerate(IMAGES):
        if image.name not in loaded:
            connection.execute(
                insert(images).values(name=image.name, description=image.description, position=position)
            )


def type_for_card(connection: Connection, model: str, vram: int) -> str:
    """Which type is a card with this driver name? An unknown card becomes a type of its own."""
    name = type_of(model, vram)
    known = select(gpu_types.c.name).where(gpu_types.c.lower_name == name.lower())
    if (found := connection.execute(known).scalar()) is not None:
        return found
    kind = unknown_type(model, vram)
    last = connection.execute(select(func.max(gpu_types.c.position))).scalar() or 0
    connection.execute(insert(gpu_types).values(_values(kind) | {"position": last + 1}))
    return kind.name


def find_type(connection: Connection, asked: str) -> str:
    """Give the type that a renter means, compared without case. Raises `UnknownGpu`."""
    query = select(gpu_types.c.name).where(gpu_types.c.lower_name == asked.lower())
    # No name has a NUL, which a database may refuse to look for.
    found = None if "\0" in asked else connection.execute(query).scalar()
    if found is None:
        query = select(gpu_types.c.name).order_by(gpu_types.c.position)
        raise UnknownGpu(asked, list(connection.execute(query).scalars()))
    return found


def find_image(connection: Connection, asked: str) -> str:
    """Give the image of that name. Raises `UnknownImage`."""
    names = [image.name for image in all_images(connection)]
    if asked not in names:
        raise UnknownImage(asked, names)
    return asked


def all_images(connection: Connection) -> list[Image]:
    """What can be loaded on an instance?"""
    query = select(images.c.name, images.c.description).order_by(images.c.position, images.c.name)
    return [Image(name, description) for name, description in connection.execute(query)]


def _values(kind: GpuType) -> dict[str, object]:
    return {
        "name": kind.name,
        "lower_name": kind.name.lower(),
        "gigaflops": kind.gigaflops,
        "vram": kind.vram,
        "generation": kind.generation,
        "asic": kind.asic,
        "source": kind.source,
    }
