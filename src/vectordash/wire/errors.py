"""Every refusal of the API: one small tree, drawn here. The class docstring is the message.

    Refusal
    ├── BadRequest 400 ── InvalidField, UnknownGpu, UnknownImage, AmbiguousName, LimitReached, KeyReused
    ├── Unauthorized 401
    ├── Forbidden 403 ── TokenReadOnly
    ├── NotFound 404 ── InstanceNotFound
    ├── MethodNotAllowed 405
    ├── NotAcceptable 406
    ├── IncompleteProfile 407
    ├── Gone 410
    ├── TooManyRequests 429
    ├── InternalError 500
    ├── ServiceUnavailable 503 ── Unavailable (the store) ── Damaged, Unsettled; PortsExhausted, Maintenance
    └── GpuUnavailable 504 ── OfferChanged

Services raise them, `server/api/errors.py` alone turns them into answers. `reason` is the stable word for
programs; the message says what was wrong and what to do about it.
"""

import inspect
from typing import Any, ClassVar

from msgspec import UNSET, Struct, UnsetType


class ErrorBody(Struct, frozen=True):
    """What went wrong."""

    code: int
    name: str
    reason: str
    message: str
    request_id: str
    fields: dict[str, str] | UnsetType = UNSET
    """Of a 400: why each field was refused."""


class Error(Struct, frozen=True):
    """The body of every answer from 400 on."""

    error: ErrorBody


class Refusal(Exception):
    """Something was refused. Subclasses write their message here, with `{values}` in it."""

    code: ClassVar[int]
    name: ClassVar[str]
    reason: ClassVar[str]

    def __init__(
        self, *, fields: dict[str, str] | None = None, retry_after: int | None = None, **values: Any
    ) -> None:
        self.message = " ".join(inspect.cleandoc(self.__doc__ or "").split()).format_map(values)
        self.fields = fields
        self.retry_after = retry_after
        """Seconds, for the `Retry-After` header."""
        self.values = values
        super().__init__(self.message)


class BadRequest(Refusal):
    """{why}"""

    code = 400
    name = "Bad Request"
    reason = "invalid_request"

    def __init__(self, why: str = "", *, fields: dict[str, str] | None = None, **values: Any) -> None:
        super().__init__(fields=fields, why=why, **values)


class InvalidField(BadRequest):
    """The request was refused. {told}."""

    reason = "invalid_field"

    def __init__(self, fields: dict[str, str]) -> None:
        told = "; ".join(f"`{field}`: {why}" for field, why in fields.items())
        super().__init__(fields=fields, told=told)


class UnknownGpu(BadRequest):
    """There is no GPU type “{gpu}” here. Known types: {known}. `GET /api/gpus` shows which are free."""

    reason = "unknown_gpu"

    def __init__(self, gpu: str, known: list[str]) -> None:
        super().__init__(fields={"gpu": "unknown GPU type"}, gpu=gpu, known=", ".join(known))


class UnknownImage(BadRequest):
    """There is no image “{image}” here. Known images: {known}."""

    reason = "unknown_image"

    def __init__(self, image: str, known: list[str]) -> None:
        super().__init__(fields={"image": "unknown image"}, image=image, known=", ".join(known))


class AmbiguousName(BadRequest):
    """You have {count} live instances named “{name}”. Use the key of the one you mean: {keys}."""

    reason = "ambiguous_name"

    def __init__(self, name: str, keys: list[str]) -> None:
        super().__init__(name=name, count=len(keys), keys=", ".join(keys))


class LimitReached(BadRequest):
    """{why} {mend}, or ask the operator of this cloud to raise the limit."""

    reason = "limit_reached"

    def __init__(self, why: str, mend: str) -> None:
        super().__init__(why, mend=mend)


class KeyReused(BadRequest):
    """This `Idempotency-Key` was already used with another body. Use a new key for a new request."""

    reason = "idempotency_key_reused"


class Unauthorized(Refusal):
    """{why} Send `Authorization: Bearer <token>` with a valid API token."""

    code = 401
    name = "Unauthorized"
    reason = "unauthorized"

    def __init__(self, why: str) -> None:
        super().__init__(why=why)


class Forbidden(Refusal):
    """This is for administrators of this cloud only."""

    code = 403
    name = "Forbidden"
    reason = "forbidden"


class TokenReadOnly(Forbidden):
    """This API token may only read. Use one with the scope `full` to create, change or delete."""

    reason = "token_read_only"


class NotFound(Refusal):
    """There is nothing at {path}. The API's paths start with `/api/`; see `/api/gpus` or `/api/instances`."""

    code = 404
    name = "Not Found"
    reason = "route_not_found"


class InstanceNotFound(NotFound):
    """You have no instance with the key, and no live one with the name, “{key}”. `GET /api/instances` lists
    your live ones."""

    reason = "instance_not_found"

    def __init__(self, key: str) -> None:
        super().__init__(key=key)


class MethodNotAllowed(Refusal):
    """{method} is not possible here; allowed: {allow}."""

    code = 405
    name = "Method Not Allowed"
    reason = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(method=method, allow=allow)
        self.allow = allow


class NotAcceptable(Refusal):
    """Your `Accept` header admits no {offered}, and nothing else is served here. Send `Accept: {offered}`
    or leave the header out."""

    code = 406
    name = "Not Acceptable"
    reason = "not_acceptable"

    def __init__(self, offered: str) -> None:
        super().__init__(offered=offered)


class IncompleteProfile(Refusal):
    """Your profile is not complete: {missing}. Nothing was rented. {mend}"""

    code = 407
    name = "Incomplete Profile"
    reason = "incomplete_profile"

    def __init__(self, missing: str, mend: str) -> None:
        super().__init__(missing=missing, mend=mend)


class Gone(Refusal):
    """The instance {key} ended at {ended} UTC. What it cost and why it ended stays at
    `GET /api/instances/{key}` and `/api/instances/{key}/events`."""

    code = 410
    name = "Gone"
    reason = "instance_gone"

    def __init__(self, key: str, ended: str) -> None:
        super().__init__(key=key, ended=ended)


class TooManyRequests(Refusal):
    """Too many requests: {limit} a second are allowed, after bursts of {burst}. Try again in {seconds} s."""

    code = 429
    name = "Too Many Requests"
    reason = "too_many_requests"

    def __init__(self, limit: int, burst: int, retry_after: int) -> None:
        super().__init__(retry_after=retry_after, limit=limit, burst=burst, seconds=retry_after)


class InternalError(Refusal):
    """Something went wrong on our side; the operator of this cloud finds it in the log by the `request_id`.
    A POST that carried an `Idempotency-Key` may be sent again with it: nothing is created twice."""

    code = 500
    name = "Internal Server Error"
    reason = "internal_error"


class ServiceUnavailable(Refusal):
    """This cloud cannot serve now. Try again in a few seconds."""

    code = 503
    name = "Service Unavailable"
    reason = "unavailable"


class Unavailable(ServiceUnavailable):
    """The store of this cloud cannot be reached or is too busy ({why}). Nothing was changed; try again in a
    few seconds. Instances that run are not affected."""

    reason = "store_unavailable"

    def __init__(self, why: str, retry_after: int = 2) -> None:
        super().__init__(retry_after=retry_after, why=why)


class Damaged(Unavailable):
    """The store of this cloud is damaged ({why}). Its operator has to mend it: `vdserver doctor` says more.
    Instances that run are not affected."""

    reason = "store_damaged"


class Unsettled(Unavailable):
    """The store of this cloud was lost in the very moment of this change, so whether it was made is not
    known. Look before you repeat it; a POST with the same `Idempotency-Key` is safe to repeat."""

    reason = "store_unsettled"

    def __init__(self) -> None:
        super().__init__("")


class PortsExhausted(ServiceUnavailable):
    """Every SSH port of the machine that has a free GPU is taken ({ports}). Nothing was rented; try again
    when an instance has ended, or ask the operator for a larger range."""

    reason = "ports_exhausted"

    def __init__(self, ports: str) -> None:
        super().__init__(retry_after=60, ports=ports)


class Maintenance(ServiceUnavailable):
    """This cloud is under maintenance. Instances that run are not affected; try again in a minute."""

    reason = "maintenance"

    def __init__(self) -> None:
        super().__init__(retry_after=60)


class GpuUnavailable(Refusal):
    """No {gpu} is free now{wanted}. {instead}"""

    code = 504
    name = "GPU Unavailable"
    reason = "gpu_unavailable"

    def __init__(self, gpu: str, wanted: str, instead: str, retry_after: int) -> None:
        super().__init__(retry_after=retry_after, gpu=gpu, wanted=wanted, instead=instead)


class OfferChanged(GpuUnavailable):
    """The {gpu} that would be rented now costs {price} an hour, more than your `Vectordash-Max-Price` of
    {limit}; it is {until}. Nothing was rented."""

    reason = "offer_changed"

    def __init__(self, gpu: str, price: str, limit: str, until: str) -> None:
        Refusal.__init__(self, retry_after=60, gpu=gpu, price=price, limit=limit, until=until)
