"""The words and rules of an instance's life."""

from datetime import UTC, datetime

import pytest

from vectordash.server.instances.lifecycle import ERRORS, MOST_ATTEMPTS, after_failure, status

THEN = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("active_at", "ended_at", "expected"),
    [
        pytest.param(None, None, "pending", id="no login yet"),
        pytest.param(THEN, None, "active", id="a login worked"),
        pytest.param(THEN, THEN, "complete", id="ended"),
        pytest.param(None, THEN, "complete", id="ended before any login"),
    ],
)
def test_the_status_follows_from_two_times(
    active_at: datetime | None, ended_at: datetime | None, expected: str
) -> None:
    assert status(active_at, ended_at) == expected


@pytest.mark.parametrize(
    ("attempts", "transient", "tried_again", "other_free", "expected"),
    [
        pytest.param(1, False, False, True, "other", id="another is free"),
        pytest.param(1, True, False, True, "other", id="another is better than the same"),
        pytest.param(2, True, True, True, "other", id="another after the same once more"),
        pytest.param(1, True, False, False, "same", id="none other, may pass: the same once more"),
        pytest.param(2, True, False, False, "same", id="the second GPU once more"),
        pytest.param(2, True, True, False, "end", id="the same only once"),
        pytest.param(1, False, False, False, "end", id="none other, will not pass"),
        pytest.param(3, True, False, True, "end", id="at most three attempts"),
        pytest.param(3, False, True, False, "end", id="three attempts and nothing left"),
    ],
)
def test_what_follows_a_failed_start(
    attempts: int, transient: bool, tried_again: bool, other_free: bool, expected: str
) -> None:
    then = after_failure(
        attempts=attempts, transient=transient, same_tried_again=tried_again, other_free=other_free
    )

    assert then == expected


def test_three_attempts_are_the_most() -> None:
    assert MOST_ATTEMPTS == 3


def test_only_ends_that_nobody_wished_for_are_errors() -> None:
    assert {"not_started", "lost", "broken"} == ERRORS
