"""What an instance has cost so far. Pure; the one place where a charge is computed.

| the instance | counts |
| --- | --- |
| is pending | one hour, as the reference shows it; nothing is owed yet |
| ended without ever being active | nothing |
| is active, or was ended by its renter | started hours since it became active, at least one |
| ended by an error | completed hours, up to when it was last seen well |

Time out of sight that it came back from is not counted. `services` fill `duration` and `estimated_charge`
from here.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

_HOUR = 3600
_CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Use:
    """All that a charge depends on."""

    price: Decimal
    """Dollars an hour."""
    active_at: datetime | None
    ended_at: datetime | None
    error: bool
    unseen_since: datetime | None = None
    """Last seen well, if it is out of sight now."""
    free_seconds: int = 0


def charge(use: Use, now: datetime, *, by_second: bool = False) -> tuple[int, Decimal]:
    """Give whole hours and dollars, rounded once, half up, to the cent."""
    if use.active_at is None:
        return (0, Decimal("0.00")) if use.ended_at else (1, _cents(use.price))
    seconds = _counted(use, use.active_at, now)
    started = max(1, -(-seconds // _HOUR))
    hours = seconds // _HOUR if use.error else started
    if by_second:
        return started, _cents(use.price * seconds / _HOUR)
    return hours, _cents(use.price * hours)


def _counted(use: Use, active_at: datetime, now: datetime) -> int:
    """Whole seconds that count; an end before the start is 0."""
    end = min(moment for moment in (use.ended_at, use.unseen_since, now) if moment is not None)
    return max(0, int((end - active_at).total_seconds()) - use.free_seconds)


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(_CENT, ROUND_HALF_UP)
