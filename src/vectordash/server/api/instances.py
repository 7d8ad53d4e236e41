"""`/api/instances` and what lies below it."""

import asyncio
import re
from decimal import Decimal
from typing import Annotated

from litestar import Request, delete, get, post, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from vectordash.server.accounts.store import Caller
from vectordash.server.api.response import JsonResponse
from vectordash.server.instances.service import Instances
from vectordash.wire.errors import BadRequest
from vectordash.wire.instance import Connection as Access
from vectordash.wire.instance import Events, NewInstance, OneConnection, OneInstance, Rename
from vectordash.wire.instance import Instances as InstanceList

_LONGEST_WAIT = 60
"""Seconds."""
_LONGEST_KEY = 255
"""Characters of an `Idempotency-Key`."""
_DOLLARS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@get("/api/instances")
async def list_instances(
    instances: NamedDependency[Instances], caller: NamedDependency[Caller]
) -> InstanceList:
    """List your pending and active instances, newest first."""
    return InstanceList(await instances.list_live(caller))


@post("/api/instances", status_code=200)
async def create_instance(
    request: Request[Caller, Caller, State],
    data: JSONBody[NewInstance],
    instances: NamedDependency[Instances],
    caller: NamedDependency[Caller],
) -> JsonResponse:
    """Rent a GPU. The answer comes at once; the instance is `pending` until a login worked."""
    instance, replayed = await instances.rent(
        caller,
        data,
        idempotency_key=_idempotency_key(request.headers.get("idempotency-key")),
        max_price=_max_price(request.headers.get("vectordash-max-price")),
    )
    headers = {"Idempotent-Replayed": "true"} if replayed else {}
    return JsonResponse(OneInstance(instance), headers=headers)


@get("/api/instances/{key:str}", opt={"query": {"wait"}})
async def get_instance(
    request: Request[Caller, Caller, State],
    key: FromPath[str],
    instances: NamedDependency[Instances],
    caller: NamedDependency[Caller],
    wait: Annotated[int, QueryParameter(ge=0, le=_LONGEST_WAIT)] = 0,
) -> OneInstance:
    """Show one instance; with `?wait=30` as soon as it is no longer pending, or after 30 seconds."""
    if not wait:
        return OneInstance(await instances.get(caller, key))
    answer = asyncio.ensure_future(instances.wait(caller, key, wait))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            return OneInstance(await instances.get(caller, key))  # nobody is there to read it
        return OneInstance(await answer)
    finally:
        answer.cancel()
        gone.cancel()


async def _gone(request: Request[Caller, Caller, State]) -> None:
    """Return when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@put("/api/instances/{key:str}")
async def rename_instance(
    key: FromPath[str],
    data: JSONBody[Rename],
    instances: NamedDependency[Instances],
    caller: NamedDependency[Caller],
) -> OneInstance:
    """Give a live instance another name."""
    return OneInstance(await instances.rename(caller, key, data.name))


@delete("/api/instances/{key:str}", status_code=204)
async def delete_instance(
    key: FromPath[str], instances: NamedDependency[Instances], caller: NamedDependency[Caller]
) -> None:
    """End an instance. The billing clock stops at this request."""
    await instances.delete(caller, key)


@get("/api/instances/{key:str}/connection")
async def get_connection(
    key: FromPath[str], instances: NamedDependency[Instances], caller: NamedDependency[Caller]
) -> OneConnection:
    """Give all that SSH needs, in one answer."""
    _, access = await instances.connection(caller, key)
    return OneConnection(access)


@get("/api/instances/{key:str}/pem", opt={"text": True}, media_type="text/plain")
async def get_pem(
    key: FromPath[str], instances: NamedDependency[Instances], caller: NamedDependency[Caller]
) -> str:
    """Give the private key, as a file for `ssh -i`."""
    _, access = await instances.connection(caller, key)
    return access.pem


@get("/api/instances/{key:str}/known_hosts", opt={"text": True}, media_type="text/plain")
async def get_known_hosts(
    key: FromPath[str], instances: NamedDependency[Instances], caller: NamedDependency[Caller]
) -> str:
    """Give the line of OpenSSH's `known_hosts`."""
    _, access = await instances.connection(caller, key)
    return access.known_hosts


@get("/api/instances/{key:str}/ssh_config", opt={"text": True}, media_type="text/plain")
async def get_ssh_config(
    key: FromPath[str], instances: NamedDependency[Instances], caller: NamedDependency[Caller]
) -> str:
    """Give a file for `ssh -F`, naming `<name>.pem` and `<name>.known_hosts` beside it."""
    name, access = await instances.connection(caller, key)
    return _ssh_config(name, access)


def _ssh_config(name: str, access: Access) -> str:
    return (
        f"Host {name}\n"
        f"  HostName {access.ip}\n"
        f"  Port {access.port}\n"
        f"  User {access.user}\n"
        f"  IdentityFile {name}.pem\n"
        f"  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {name}.known_hosts\n"
        f"  GlobalKnownHostsFile /dev/null\n"
        f"  StrictHostKeyChecking yes\n"
    )


@get("/api/instances/{key:str}/events")
async def list_events(
    key: FromPath[str], instances: NamedDependency[Instances], caller: NamedDependency[Caller]
) -> Events:
    """Tell what happened to an instance and why, oldest first."""
    return Events(await instances.events(caller, key))


def _idempotency_key(header: str | None) -> str | None:
    if header is not None and not 1 <= len(header) <= _LONGEST_KEY:
        raise BadRequest(
            f"An `Idempotency-Key` has 1 to {_LONGEST_KEY} characters; this one has {len(header)}."
        )
    return header


def _max_price(header: str | None) -> Decimal | None:
    if header is not None and not _DOLLARS.fullmatch(header):
        raise BadRequest(f"`Vectordash-Max-Price` is “{header}”; write dollars an hour, such as 0.64.")
    return None if header is None else Decimal(header)
