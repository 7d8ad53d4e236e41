"""`/api/images`."""

from litestar import get
from litestar.di import NamedDependency

from vectordash.server.api.services import Services
from vectordash.server.catalogue.store import all_images
from vectordash.wire.image import Images


@get("/api/images", opt={"public": True})
async def list_images(services: NamedDependency[Services]) -> Images:
    """List what can be loaded on an instance."""
    return Images(await services.store.read(all_images))
