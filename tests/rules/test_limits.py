"""Rate limits: how many requests a bucket lets through, and what it tells of itself."""

from dataclasses import dataclass

import pytest

from vectordash.server.api import limits
from vectordash.server.api.limits import Limit
from vectordash.wire.errors import TooManyRequests


@dataclass
class Seconds:
    """A clock that is set by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


def limit(rate: int = 2, burst: int = 3) -> tuple[Limit, Seconds]:
    """Make a limit and its clock."""
    seconds = Seconds()
    return Limit("token", rate, burst, seconds), seconds


def spend(one: Limit, who: object = "ada") -> int:
    """Spend until nothing is left; gives how often that went well."""
    for count in range(100):
        try:
            one.spend(who)
        except TooManyRequests:
            return count
    raise AssertionError("there is no end to it")


def told(one: Limit, who: object = "ada") -> dict[str, str]:
    """Give the headers as text."""
    return {name.decode(): value.decode() for name, value in one.headers(who)}


def test_a_burst_goes_through_and_no_more() -> None:
    one, _ = limit(rate=2, burst=3)

    assert spend(one) == 3
    assert spend(one) == 0


@pytest.mark.parametrize(
    ("seconds", "more"), [(0.4, 0), (0.5, 1), (0.9, 1), (1.0, 2), (1.5, 3), (2.0, 3), (9999.0, 3)]
)
def test_what_is_spent_comes_back_by_the_rate_up_to_the_burst(seconds: float, more: int) -> None:
    one, clock = limit(rate=2, burst=3)
    spend(one)

    clock.now += seconds

    assert spend(one) == more


def test_asking_in_vain_costs_nothing() -> None:
    one, clock = limit(rate=2, burst=3)
    spend(one)
    for _ in range(5):
        clock.now += 0.1
        spend(one)

    assert told(one)["ratelimit"] == '"token";r=0;t=1'
    clock.now += 0.1
    assert told(one)["ratelimit"] == '"token";r=0;t=1'
    clock.now += 0.5
    assert told(one)["ratelimit"] == '"token";r=1;t=1'


def test_each_has_a_bucket_of_its_own() -> None:
    one, _ = limit(burst=3)

    assert [spend(one, who) for who in ("ada", "grace", 7)] == [3, 3, 3]


def test_a_refusal_says_the_rule_and_when_to_come_back() -> None:
    one, _ = limit(rate=2, burst=3)
    spend(one)

    with pytest.raises(TooManyRequests) as refusal:
        one.spend("ada")

    assert refusal.value.retry_after == 1
    assert refusal.value.message == (
        "Too many requests: 2 a second are allowed, after bursts of 3. Try again in 1 s."
    )


@pytest.mark.parametrize(("rate", "burst", "window"), [(50, 1000, 20), (20, 200, 10), (2, 3, 2), (9, 1, 1)])
def test_the_headers_tell_the_rule_and_what_is_left(rate: int, burst: int, window: int) -> None:
    one, _ = limit(rate, burst)
    one.spend("ada")

    assert told(one) == {
        "ratelimit-policy": f'"token";q={burst};w={window}',
        "ratelimit": f'"token";r={burst - 1};t=1',
    }


def test_of_an_unknown_one_all_is_left() -> None:
    one, _ = limit(burst=3)

    assert told(one, "nobody")["ratelimit"] == '"token";r=3;t=1'


def test_full_buckets_are_forgotten_and_others_kept() -> None:
    one, clock = limit(rate=1, burst=3)
    for who in range(limits._SWEEP_AT):
        one.spend(who)
    clock.now += 1
    spend(one, "ada")
    assert set(one._buckets) == {"ada"}

    assert spend(one, "ada") == 0
