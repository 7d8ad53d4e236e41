"""All routes as one ASGI application."""

from typing import Any

from litestar import Litestar, Request, Router
from litestar.di import Provide

from vectordash.server.accounts.service import Accounts
from vectordash.server.accounts.store import Caller
from vectordash.server.api import account, errors, gpus, health, images, instances
from vectordash.server.api.auth import admit
from vectordash.server.api.middleware import Outermost
from vectordash.server.api.request import LONGEST_BODY, StrictRequest
from vectordash.server.api.response import JsonResponse
from vectordash.server.api.services import Services
from vectordash.server.instances.service import Instances


def create_app(services: Services) -> Outermost:
    """Make the application; `services.settings` rule it."""
    api = Router(
        "/",
        route_handlers=[
            account.get_account,
            gpus.list_gpus,
            images.list_images,
            instances.list_instances,
            instances.create_instance,
            instances.get_instance,
            instances.rename_instance,
            instances.delete_instance,
            instances.get_connection,
            instances.get_pem,
            instances.get_known_hosts,
            instances.get_ssh_config,
            instances.list_events,
        ],
        guards=[admit],
    )
    app = Litestar(
        route_handlers=[api, health.healthz, health.readyz],
        dependencies={
            "services": Provide(lambda: services, sync_to_thread=False),
            "accounts": Provide(lambda: services.accounts, sync_to_thread=False),
            "instances": Provide(lambda: services.instances, sync_to_thread=False),
            "caller": Provide(_caller, sync_to_thread=False),
        },
        exception_handlers={Exception: errors.answer},
        request_class=StrictRequest,
        request_max_body_size=LONGEST_BODY,
        response_class=JsonResponse,
        openapi_config=None,
        logging_config=None,
        signature_types=[Services, Accounts, Instances, Caller],
    )
    app.state.services = services
    return Outermost(app)


def _caller(request: Request[Caller, Caller, Any]) -> Caller:
    return request.auth
