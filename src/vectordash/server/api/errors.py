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

from vectordash.server.api.auth import spend_address
from vectordash.server.api.middleware import is_api, method_of
from vectordash.wire import errors
from vectordash.wire.errors import Error, ErrorBody, Refusal, TooManyRequests

log = logging.getLogger(__name__)

_NOT_YET = frozenset({"cpu", "cores", "ram", "storage", "volumes"})
"""Fields that the reference documents as not currently supported."""
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]*)`")
_NAMES_OF_TYPES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
_PLAIN = (
    (re.compile(r"Expected `int`, got `str`"), "it must be a whole number"),
    (re.compile(r"Expected `(\w+)`, got `(\w+)`"), "it must be {0}, not {1}"),
    (
        re.compile(r"Expected `str` matching regex .*A-Za-z0-9.*"),
        "a name is 1 to 63 letters, digits, `-` or `_`, beginning and ending with a letter or digit",
    ),
    (re.compile(r"Expected `str` matching regex .*"), "write YYYY-MM-DD HH:MM:SS (UTC)"),
    (re.compile(r"Expected `str` of length >= 1"), "it is empty"),
    (re.compile(r"Expected `str` of length <= (\d+)"), "it may have at most {0} characters"),
    (re.compile(r"Expected `int` >= (-?\d+)"), "it must be at least {0}"),
    (re.compile(r"Expected `int` <= (-?\d+)"), "it may be at most {0}"),
)
"""What the decoder says, and what a renter is told."""


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Error]:
    """Turn whatever was raised into the contract's answer."""
    refusal = _over_limit(request) or _refusal(request, error)
    request_id = request.scope["state"].get("request_id", "")
    if refusal.code == errors.InternalError.code:
        log.error("request %s failed", request_id, exc_info=error)
    elif refusal.code == errors.Unavailable.code:
        log.warning("request %s: %s", request_id, refusal)
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


def _over_limit(request: Request[Any, Any, Any]) -> Refusal | None:
    """Count a request that was refused before anybody asked whose it is (404, 405, 503) to its address."""
    if "limit_headers" not in request.scope["state"] and is_api(request.scope["path"]):
        try:
            spend_address(request)
        except TooManyRequests as refusal:
            return refusal
    return None


def _refusal(request: Request[Any, Any, Any], error: Exception) -> Refusal:
    """Give the refusal that an error means; what is not foreseen is ours: 500."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MethodNotAllowedException):
        allow = sorted({method.strip() for method in (error.headers or {}).get("allow", "").split(",")})
        possible = ", ".join(one for one in allow if one not in {"", "OPTIONS"})
        return errors.MethodNotAllowed(method_of(request.scope), possible)
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
    return errors.InvalidField(fields) if fields else errors.BadRequest(error.detail)


def _plain(message: str) -> str:
    """Say a mismatch in the words of the contract rather than of the decoder."""
    for pattern, told in _PLAIN:
        if found := pattern.match(message):
            return told.format(*(_NAMES_OF_TYPES.get(word, word) for word in found.groups()))
    return message[:1].lower() + message[1:]
