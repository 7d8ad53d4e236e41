"""`/healthz` and `/readyz`: is the process alive, and can it serve?"""

from litestar import Response, get
from litestar.di import NamedDependency

from vectordash.server.api.services import Services
from vectordash.server.db import facts
from vectordash.wire.errors import Unavailable


@get("/healthz", opt={"public": True})
async def healthz() -> dict[str, str]:
    """Answer: the process is alive."""
    return {"status": "alive"}


@get("/readyz", opt={"public": True})
async def readyz(services: NamedDependency[Services]) -> Response[dict[str, str]]:
    """Answer 200 if the store is reachable and the reconciler goes round; 503 and why if not."""
    problems = {}
    try:
        await services.store.read(facts.fact, "encryption key")
        if not await services.reconciler_fresh():
            problems["reconciler"] = "none has gone round lately"
    except Unavailable as error:
        problems["store"] = error.message
    if problems:
        return Response({"status": "not ready", **problems}, status_code=503, headers={"Retry-After": "2"})
    return Response({"status": "ready"})
