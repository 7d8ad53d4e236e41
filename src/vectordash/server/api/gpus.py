"""`/api/gpus`."""

from datetime import timedelta

from litestar import get
from litestar.di import NamedDependency

from vectordash.server.api.services import Services
from vectordash.server.machines.offers import free_types
from vectordash.wire.gpu import Gpus


@get("/api/gpus", opt={"public": True})
async def list_gpus(services: NamedDependency[Services]) -> Gpus:
    """List what can be rented now: one row a type, showing the very GPU that a POST would take."""
    now = services.clock()
    soon = now + timedelta(hours=services.settings.least_hours)
    return Gpus(await services.store.read(free_types, now, soon))
