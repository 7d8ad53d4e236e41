"""What an instance has cost: the table of `instances/charge.py`, and its edges."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectordash.server.instances.charge import Use, charge

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def after(**time: float) -> datetime:
    """So long after it became active."""
    return BEGAN + timedelta(**time)


def use(price: str = "0.85", **how: object) -> Use:
    """An active instance at 0.85 an hour, but for what is given."""
    plain = Use(Decimal(price), active_at=BEGAN, ended_at=None, error=False)
    return replace(plain, **how)  # type: ignore[arg-type]


def lost(end: datetime, **how: object) -> Use:
    """One that an error ended then."""
    return use(ended_at=end, error=True, **how)


HOURLY = {
    "pending": (use(active_at=None), after(hours=9), 1, "0.85"),
    "ended while pending": (use(active_at=None, ended_at=BEGAN), after(hours=9), 0, "0.00"),
    "could not be started": (use(active_at=None, ended_at=BEGAN, error=True), after(hours=9), 0, "0.00"),
    "just active": (use(), BEGAN, 1, "0.85"),
    "a second": (use(), after(seconds=1), 1, "0.85"),
    "a second less than an hour": (use(), after(seconds=3599), 1, "0.85"),
    "an hour": (use(), after(hours=1), 1, "0.85"),
    "an hour and less than a second": (use(), after(hours=1, milliseconds=999), 1, "0.85"),
    "an hour and a second": (use(), after(hours=1, seconds=1), 2, "1.70"),
    "8 hours, as in the reference": (use(), after(hours=8), 8, "6.80"),
    "a year": (use(), after(days=365), 8760, "7446.00"),
    "ended": (use(ended_at=after(hours=2)), after(days=9), 2, "1.70"),
    "ended a second after an hour": (use(ended_at=after(hours=1, seconds=1)), after(days=9), 2, "1.70"),
    "ended when it began": (use(ended_at=BEGAN), after(days=9), 1, "0.85"),
    "ended before it began": (use(ended_at=after(seconds=-5)), after(days=9), 1, "0.85"),
    "to end in future": (use(ended_at=after(hours=9)), after(hours=2), 2, "1.70"),
    "before it began": (use(), after(hours=-1), 1, "0.85"),
    "lost within the first hour": (lost(after(minutes=59)), after(days=9), 0, "0.00"),
    "lost after an hour": (lost(after(hours=1)), after(days=9), 1, "0.85"),
    "lost a second before two": (lost(after(seconds=7199)), after(days=9), 1, "0.85"),
    "lost before it began": (lost(after(seconds=-5)), after(days=9), 0, "0.00"),
    "lost, last seen well before": (
        lost(after(hours=3), unseen_since=after(hours=2)),
        after(days=9),
        2,
        "1.70",
    ),
    "out of sight": (use(unseen_since=after(minutes=90)), after(hours=9), 2, "1.70"),
    "out of sight from the start": (use(unseen_since=BEGAN), after(hours=9), 1, "0.85"),
    "out of sight, then ended": (
        use(unseen_since=after(hours=1), ended_at=after(hours=5)),
        after(hours=9),
        1,
        "0.85",
    ),
    "back after an hour": (use(free_seconds=3600), after(hours=3), 2, "1.70"),
    "back after a second": (use(free_seconds=1), after(hours=1, seconds=1), 1, "0.85"),
    "back after all of it": (use(free_seconds=99999), after(hours=3), 1, "0.85"),
    "lost after a gap": (lost(after(hours=3), free_seconds=3600), after(hours=9), 2, "1.70"),
    "free of charge": (use("0"), after(hours=8), 8, "0.00"),
    "half a cent up": (use("0.645"), after(hours=1), 1, "0.65"),
    "half a cent up once, at the end": (use("0.645"), after(hours=3), 3, "1.94"),
    "less than half a cent down": (use("0.644999"), after(hours=1), 1, "0.64"),
    "pending, half a cent up": (use("0.645", active_at=None), BEGAN, 1, "0.65"),
}


@pytest.mark.parametrize(("what", "now", "hours", "dollars"), HOURLY.values(), ids=HOURLY)
def test_by_the_hour(what: Use, now: datetime, hours: int, dollars: str) -> None:
    duration, so_far = charge(what, now)

    assert (duration, str(so_far)) == (hours, dollars)


BY_SECOND = {
    "pending": (use(active_at=None), after(hours=9), 1, "0.85"),
    "ended while pending": (use(active_at=None, ended_at=BEGAN), after(hours=9), 0, "0.00"),
    "just active": (use(), BEGAN, 1, "0.00"),
    "a second": (use("36"), after(seconds=1), 1, "0.01"),
    "half a cent up": (use("18"), after(seconds=1), 1, "0.01"),
    "less than half a cent down": (use("17.999"), after(seconds=1), 1, "0.00"),
    "half an hour": (use("1.10"), after(minutes=30), 1, "0.55"),
    "an hour and a second": (use("0.85"), after(hours=1, seconds=1), 2, "0.85"),
    "three quarters": (use("0.85"), after(minutes=45), 1, "0.64"),
    "ended": (use(ended_at=after(minutes=90)), after(days=9), 2, "1.28"),
    "ended before it began": (use(ended_at=after(seconds=-5)), after(days=9), 1, "0.00"),
    "lost": (lost(after(minutes=90)), after(days=9), 2, "1.28"),
    "out of sight": (use(unseen_since=after(minutes=90)), after(hours=9), 2, "1.28"),
    "back after an hour": (use(free_seconds=3600), after(minutes=90), 1, "0.43"),
}


@pytest.mark.parametrize(("what", "now", "hours", "dollars"), BY_SECOND.values(), ids=BY_SECOND)
def test_by_the_second(what: Use, now: datetime, hours: int, dollars: str) -> None:
    """The duration stays whole hours."""
    duration, so_far = charge(what, now, by_second=True)

    assert (duration, str(so_far)) == (hours, dollars)


moments = st.integers(-7200, 10**6).map(lambda seconds: after(seconds=seconds))
uses = st.builds(
    Use,
    price=st.decimals(0, 1000, places=2),
    active_at=st.none() | st.just(BEGAN),
    ended_at=st.none() | moments,
    error=st.booleans(),
    unseen_since=st.none() | moments,
    free_seconds=st.integers(0, 10**5),
)


@settings(max_examples=200, derandomize=True, database=None)
@given(what=uses, now=moments, later=st.integers(0, 10**5))
def test_a_charge_is_duration_times_price_and_never_falls(what: Use, now: datetime, later: int) -> None:
    duration, so_far = charge(what, now)
    by_second = charge(what, now, by_second=True)[1]

    assert so_far == duration * what.price
    assert so_far.as_tuple().exponent == by_second.as_tuple().exponent == -2
    assert charge(what, now + timedelta(seconds=later)) >= (duration, so_far)
    assert 0 <= charge(replace(what, error=True), now)[1] <= charge(replace(what, error=False), now)[1]
