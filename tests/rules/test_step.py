"""The decision table of the reconciler: every cell, its boundaries, and that it leads to an end."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectordash.server.reconciler.step import (
    Desired,
    GiveUp,
    Lose,
    Recover,
    Release,
    Remove,
    Rest,
    Restart,
    Sight,
    Start,
    Step,
    Wait,
    step,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LATER = NOW + SECOND

PENDING = Desired(wanted=True, active=False, deadline=LATER)
OVERDUE = replace(PENDING, deadline=NOW)
ACTIVE = replace(OVERDUE, active=True)
UNSEEN = replace(ACTIVE, unseen=True, lost_at=LATER)
TOO_LONG = replace(UNSEEN, lost_at=NOW)
UNWANTED = replace(PENDING, wanted=False)


@pytest.mark.parametrize(
    ("desired", "sight", "expected"),
    [
        pytest.param(UNWANTED, "running", Remove(), id="unwanted-running"),
        pytest.param(UNWANTED, "stopped", Remove(), id="unwanted-stopped"),
        pytest.param(UNWANTED, "absent", Release(), id="unwanted-absent"),
        pytest.param(UNWANTED, "unknown", Wait(), id="unwanted-unknown"),
        pytest.param(PENDING, "running", Start(LATER), id="pending-running"),
        pytest.param(PENDING, "stopped", Start(LATER), id="pending-stopped"),
        pytest.param(PENDING, "absent", Start(LATER), id="pending-absent"),
        pytest.param(PENDING, "unknown", Wait(LATER), id="pending-unknown"),
        pytest.param(
            OVERDUE,
            "running",
            GiveUp("it could not be logged in to in time", transient=True),
            id="overdue-running",
        ),
        pytest.param(
            OVERDUE,
            "stopped",
            GiveUp("it could not be logged in to in time", transient=True),
            id="overdue-stopped",
        ),
        pytest.param(
            OVERDUE,
            "absent",
            GiveUp("it could not be logged in to in time", transient=True),
            id="overdue-absent",
        ),
        pytest.param(
            OVERDUE,
            "unknown",
            GiveUp("its machine could not be reached in time", transient=False),
            id="overdue-unknown",
        ),
        pytest.param(ACTIVE, "running", Rest(), id="active-running"),
        pytest.param(UNSEEN, "running", Recover(), id="unseen-running"),
        pytest.param(TOO_LONG, "running", Recover(), id="unseen-too-long-running"),
        pytest.param(ACTIVE, "stopped", Restart(), id="active-stopped"),
        pytest.param(UNSEEN, "stopped", Restart(), id="unseen-stopped"),
        pytest.param(TOO_LONG, "stopped", Lose, id="unseen-too-long-stopped"),
        pytest.param(replace(UNSEEN, starts_failed=2), "stopped", Restart(), id="two-starts-failed"),
        pytest.param(replace(UNSEEN, starts_failed=3), "stopped", Lose, id="three-starts-failed"),
        pytest.param(replace(UNSEEN, starts_failed=3), "running", Recover(), id="running-after-all"),
        pytest.param(ACTIVE, "absent", Lose, id="active-absent"),
        pytest.param(UNSEEN, "absent", Lose, id="unseen-absent"),
        pytest.param(ACTIVE, "unknown", Wait(None), id="active-unknown"),
        pytest.param(UNSEEN, "unknown", Wait(LATER), id="unseen-unknown"),
        pytest.param(TOO_LONG, "unknown", Lose, id="unseen-too-long-unknown"),
    ],
)
def test_the_table_decides(desired: Desired, sight: Sight, expected: Step | type[Step]) -> None:
    decided = step(desired, sight, NOW)

    assert isinstance(decided, expected) if isinstance(expected, type) else decided == expected


@pytest.mark.parametrize(
    "wanted_otherwise", [PENDING, OVERDUE, ACTIVE, UNSEEN, TOO_LONG], ids=lambda desired: repr(desired)[8:60]
)
def test_what_is_not_wanted_is_only_ever_removed(wanted_otherwise: Desired) -> None:
    unwanted = replace(wanted_otherwise, wanted=False)

    assert [step(unwanted, sight, NOW) for sight in ("running", "stopped", "absent", "unknown")] == [
        Remove(),
        Remove(),
        Release(),
        Wait(),
    ]


@pytest.mark.parametrize("desired", [OVERDUE, TOO_LONG], ids=["deadline", "lost_at"])
def test_a_moment_is_over_when_it_comes_and_not_before(desired: Desired) -> None:
    assert isinstance(step(desired, "unknown", NOW - timedelta(microseconds=1)), Wait)
    assert isinstance(step(desired, "unknown", NOW), GiveUp | Lose)


@dataclass
class World:
    """What a truthful cluster and the store would say after each step."""

    desired: Desired
    sight: Sight
    starts_work: bool
    now: datetime = NOW
    released: bool = False

    def carry_out(self, decided: Step) -> None:
        """Let a step come to what it would."""
        match decided:
            case Start() if self.starts_work:
                self.sight, self.desired = "running", replace(self.desired, active=True)
            case Start() | GiveUp() | Lose():
                self.desired = replace(self.desired, wanted=False)
            case Restart() if self.starts_work:
                self.sight = "running"
            case Restart():
                self.desired = replace(self.desired, starts_failed=self.desired.starts_failed + 1)
            case Recover():
                self.desired = replace(self.desired, unseen=False, lost_at=None, starts_failed=0)
            case Remove():
                self.sight = "absent"
            case Release():
                self.released = True
            case Wait():
                self.now += timedelta(minutes=1)
                self.sight = "absent" if self.sight == "unknown" and not self.desired.wanted else self.sight
            case Rest():
                raise AssertionError("at rest nothing is carried out")


moments = st.integers(-3600, 3600).map(lambda seconds: NOW + timedelta(seconds=seconds))


@st.composite
def desires(draw: st.DrawFn) -> Desired:
    """Anything that the store can desire of an attempt."""
    unseen = draw(st.booleans())
    return Desired(
        wanted=draw(st.booleans()),
        active=draw(st.booleans()),
        deadline=draw(moments),
        unseen=unseen,
        lost_at=draw(moments) if unseen else None,
        starts_failed=draw(st.integers(0, 5)),
    )


@given(
    desired=desires(),
    sight=st.sampled_from(["running", "stopped", "absent", "unknown"]),
    starts_work=st.booleans(),
)
def test_from_anywhere_repeated_steps_end_at_rest_or_released(
    desired: Desired, sight: Sight, starts_work: bool
) -> None:
    if desired.active and sight == "unknown" and not desired.unseen:
        desired = replace(desired, unseen=True, lost_at=LATER)  # the next pass reports it
    world = World(desired, sight, starts_work)

    for _ in range(200):
        decided = step(world.desired, world.sight, world.now)
        if isinstance(decided, Rest) or world.released:
            break
        world.carry_out(decided)

    if world.released:
        assert not world.desired.wanted
        assert world.sight == "absent"
    else:
        assert step(world.desired, world.sight, world.now) == Rest()
        assert world.desired.active
        assert world.sight == "running"


@given(desired=desires(), sight=st.sampled_from(["running", "stopped", "absent", "unknown"]))
def test_only_proof_that_nothing_is_left_releases(desired: Desired, sight: Sight) -> None:
    released = isinstance(step(desired, sight, NOW), Release)

    assert released == (sight == "absent" and not desired.wanted)
