"""Guards, in the contract's order: who is calling (401), may they (403), can they read the answer (406).

They run after the route is found (404, 405) and before the body is read (400). What a handler needs is said
on the handler: `opt={"public": True}`, `opt={"text": True}`, `opt={"query": {"wait"}}`.
"""

import re
from typing import Any

from litestar.connection import ASGIConnection
from litestar.datastructures.headers import MediaTypeHeader
from litestar.handlers import BaseRouteHandler

from vectordash.server.accounts.store import Caller
from vectordash.server.api.limits import Limit
from vectordash.server.api.services import Services
from vectordash.wire.errors import BadRequest, Maintenance, NotAcceptable, TokenReadOnly, Unauthorized

_READS = frozenset({"GET", "HEAD"})


async def admit(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let a request through to its body, or refuse it."""
    services: Services = connection.app.state.services
    if services.settings.maintenance:
        raise Maintenance
    if handler.opt.get("public"):
        spend_address(connection)
    else:
        caller = await _recognise(connection, services)
        connection.scope["auth"] = caller
        if caller.scope == "read" and _method(connection) not in _READS:
            raise TokenReadOnly
    _demand_acceptable(connection, handler)
    _demand_known_query(connection, handler)


async def _recognise(connection: ASGIConnection[Any, Any, Any, Any], services: Services) -> Caller:
    """Find whom the token speaks for; a bad one costs its address, so that nobody can try many."""
    try:
        caller = await services.accounts.recognise(_token(connection))
    except Unauthorized:
        spend_address(connection)
        raise
    _spend(connection, services.token_limit, caller.token_id)
    return caller


def _method(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    return str(connection.scope.get("method", ""))


def _token(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    header = connection.headers.get("authorization")
    if header is None:
        raise Unauthorized("There is no `Authorization` header.")
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or " " in token:
        raise Unauthorized("The `Authorization` header is malformed.")
    return token


def spend_address(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    """Count a request that no token speaks for to its address. Raises `TooManyRequests`."""
    services: Services = connection.app.state.services
    _spend(connection, services.address_limit, connection.client.host if connection.client else "")


def _spend(connection: ASGIConnection[Any, Any, Any, Any], limit: Limit, who: object) -> None:
    try:
        limit.spend(who)
    finally:
        connection.scope["state"]["limit_headers"] = limit.headers(who)


def _demand_acceptable(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    offered = ["application/json"]
    if handler.opt.get("text"):
        offered.append("text/plain")
    if _method(connection) == "DELETE":
        offered.append("application/octet-stream")
    accept = ", ".join(connection.headers.getall("accept", [])) or "*/*"
    if not any(_admits(accept, kind) for kind in offered):
        raise NotAcceptable(offered[-1] if handler.opt.get("text") else offered[0])


def _admits(accept: str, offered: str) -> bool:
    """The most specific range that matches decides (RFC 9110), and `q=0` refuses."""
    kind = MediaTypeHeader(offered)
    matching = [one for one in map(MediaTypeHeader, accept.split(",")) if kind.match(one)]
    if not matching:
        return False
    weight = max(matching, key=lambda one: one.priority[1]).params.get("q", "1")
    return re.fullmatch(r"0(\.0*)?", weight) is None


def _demand_known_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    known: set[str] = handler.opt.get("query", set())
    for name in connection.query_params:
        if name not in known:
            takes = f"Known ones: {', '.join(sorted(known))}." if known else "This path takes none."
            raise BadRequest(f"There is no query parameter “{name}” here. {takes}", fields={name: "unknown"})
        if len(connection.query_params.getall(name)) > 1:
            raise BadRequest(f"The query parameter “{name}” is given twice.", fields={name: "given twice"})
