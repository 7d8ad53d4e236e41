"""Where an error becomes an HTTP answer, once for all routes. Never a stack trace, never HTML."""

import logging
import re
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)

from vectordash.wire import errors
from vectordash.wire.errors import Error, ErrorBody, Refusal

log = logging.getLogger(__name__)

_NOT_YET = frozenset({"cpu", "cores", "ram", "storage", "volumes"})
"""Fields that the reference documents as not currently supported."""
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Error]:
    """Turn whatever was raised into the contract's answer."""
    refusal = _refusal(request, error)
    request_id = request.scope["state"].get("request_id", "")
    if refusal.code == errors.InternalError.code:
        log.error("request %s failed", request_id, exc_info=error)
    headers = {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if isinstance(refusal, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(refusal, errors.MethodNotAllowed):
        headers["Allow"] = refusal.allow
    body = ErrorBody(
        code=refusal.code,
        name=refusal.name,
        reason=refusal.reason,
        message=refusal.message,
        request_id=request_id,
        fields=refusal.fields or msgspec.UNSET,
    )
    return Response(Error(body), status_code=refusal.code, headers=headers)


def _refusal(request: Request[Any, Any, Any], error: Exception) -> Refusal:
    """Give the refusal that an error means; what is not foreseen is ours: 500."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MethodNotAllowedException):
        allow = sorted({method.strip() for method in (error.headers or {}).get("allow", "").split(",")})
        method = "OPTIONS" if request.scope["method"] == "TRACE" else request.scope["method"]
        return errors.MethodNotAllowed(method, ", ".join(one for one in allow if one not in {"", "OPTIONS"}))
    if isinstance(error, NotFoundException):
        return errors.NotFound(path=request.scope["path"])
    if isinstance(error, ValidationException):
        return _validation(error)
    if isinstance(error, HTTPException) and error.status_code < errors.InternalError.code:
        return errors.BadRequest(error.detail)
    return errors.InternalError()


def _validation(error: ValidationException) -> Refusal:
    """Name each field that was refused, and why."""
    fields: dict[str, str] = {}
    for one in error.extra if isinstance(error.extra, list) else []:
        message, key = str(one.get("message", "")), str(one.get("key", ""))
        if found := _UNKNOWN.search(message):
            field = found["field"]
            fields[field] = "not supported yet" if field in _NOT_YET else "unknown field"
        elif found := _MISSING.search(message):
            fields[found["field"]] = "required"
        else:
            fields[key or "body"] = _plain(message)
    if not fields:
        return errors.BadRequest(error.detail)
    told = "; ".join(f"`{field}`: {why}" for field, why in fields.items())
    return errors.BadRequest(f"The request was refused: {told}.", fields=fields)


def _plain(message: str) -> str:
    """Say a mismatch in the words of the contract rather than of the decoder."""
    if "matching regex" in message and "A-Za-z0-9" in message:
        return "a name is 1 to 63 letters, digits, `-` or `_`, beginning and ending with a letter or digit"
    if "matching regex" in message:
        return "write YYYY-MM-DD HH:MM:SS (UTC)"
    return message[:1].lower() + message[1:]
