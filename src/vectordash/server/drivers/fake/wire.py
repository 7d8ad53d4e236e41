"""What goes over the socket of a served fake cluster: a connection a call, one line of JSON each way.

Errors of drivers travel as themselves, all others as a `DriverError` that names them. Both ends are of the
same version: a cluster in memory outlives none.
"""

from typing import Literal

import msgspec

from vectordash.server.drivers.base import DriverError, PortBusy, StartFailed, Unreachable
from vectordash.server.drivers.fake.driver import Call, Fault

LIMIT = 2**26
"""Bytes of the longest line: a list of a hundred thousand instances."""
_NOTHING = msgspec.Raw(b"null")


class Ask(msgspec.Struct, frozen=True):
    """A call, with the one argument that it takes, if any."""

    call: str
    given: msgspec.Raw = _NOTHING


class Told(msgspec.Struct, frozen=True):
    """An error."""

    kind: Literal["DriverError", "Unreachable", "StartFailed", "PortBusy"]
    message: str
    transient: bool = False
    port: int = 0


class Answer(msgspec.Struct, frozen=True):
    """How the call went."""

    result: msgspec.Raw = _NOTHING
    error: Told | None = None


class Order(msgspec.Struct, frozen=True):
    """A `Fault`."""

    call: Call
    error: Told | None
    delay: float | None
    """None: it hangs, for JSON knows no infinity."""
    after: bool
    gpu: str | None
    times: int


def ask(call: str, given: object) -> bytes:
    """Write a call."""
    return msgspec.json.encode(Ask(call, msgspec.Raw(msgspec.json.encode(given)))) + b"\n"


def answer(result: object) -> bytes:
    """Write what a call gives."""
    return msgspec.json.encode(Answer(msgspec.Raw(msgspec.json.encode(result)))) + b"\n"


def refusal(error: Exception) -> bytes:
    """Write what a call raises."""
    return msgspec.json.encode(Answer(error=tell(error))) + b"\n"


def tell(error: Exception) -> Told:
    """Describe an error."""
    match error:
        case PortBusy():
            return Told("PortBusy", str(error), port=error.port)
        case StartFailed():
            return Told("StartFailed", str(error), transient=error.transient)
        case Unreachable():
            return Told("Unreachable", str(error))
        case DriverError():
            return Told("DriverError", str(error))
        case _:
            return Told("DriverError", f"{type(error).__name__}: {error}")


def error_of(told: Told) -> DriverError:
    """Make the error that was described."""
    match told.kind:
        case "PortBusy":
            return PortBusy(told.port)
        case "StartFailed":
            return StartFailed(told.message, transient=told.transient)
        case "Unreachable":
            return Unreachable(told.message)
        case "DriverError":
            return DriverError(told.message)


def order_of(fault: Fault) -> Order:
    """Describe a fault."""
    error = None if fault.error is None else tell(fault.error)
    delay = None if fault.delay == float("inf") else fault.delay
    return Order(fault.call, error, delay, fault.after, fault.gpu, fault.times)


def fault_of(order: Order) -> Fault:
    """Make the fault that was described."""
    error = None if order.error is None else error_of(order.error)
    delay = float("inf") if order.delay is None else order.delay
    return Fault(order.call, error, delay, order.after, order.gpu, order.times)
