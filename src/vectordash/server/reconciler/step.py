"""The decision: given what is desired of an attempt and what was seen of it, what is the one next step?

Pure, and the whole of the policy: everything else only carries it out. No step relies on memory, so a
process may be killed between any two of them and the next one decides the same.

| the attempt | running | stopped | absent | unknown |
| --- | --- | --- | --- | --- |
| is no longer wanted | Remove | Remove | Release | Wait, or Abandon |
| is to become active | Start | Start | Start | Wait |
| … and its deadline is over | GiveUp | GiveUp | GiveUp | GiveUp |
| is active | Rest, or Recover | Restart, or Lose | Lose | Wait, or Lose |
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from vectordash.server.instances.lifecycle import MOST_RESTARTS

PATIENCE = timedelta(minutes=2)
"""How long after its deadline a failed attempt's machine may stay out of reach before the renter is told."""

Sight = Literal[
    "running",
    "stopped",  # there, but not running
    "absent",  # nothing is left of it: a direct look said so
    "unknown",  # its cluster did not answer
]


@dataclass(frozen=True, slots=True)
class Desired:
    """What the store wants of one attempt."""

    wanted: bool
    """The instance has not ended, and stands on this attempt."""
    active: bool
    """A login has worked before."""
    deadline: datetime
    """By when a first login must work."""
    unseen: bool = False
    """It was reported out of sight."""
    lost_at: datetime | None = None
    """When it counts as lost if it is still out of sight."""
    starts_failed: int = 0
    """In a row, of an active one that had stopped."""
    again: bool = False
    """Its start failed, and the same GPU is to be tried once more as soon as nothing is left of it."""


@dataclass(frozen=True, slots=True)
class Start:
    """Make it run and log in; then it is active. `by`: the deadline."""

    by: datetime


@dataclass(frozen=True, slots=True)
class Restart:
    """It had stopped: start it again."""


@dataclass(frozen=True, slots=True)
class Recover:
    """It was out of sight and is well."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Take it off its cluster."""


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing of it is left: let go of its GPU and port."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Its start failed; another attempt may follow."""

    why: str
    transient: bool
    """The same GPU may do better the next time."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Its GPU was to be tried once more, but its machine is out of reach for too long: no more tries."""

    why: str


@dataclass(frozen=True, slots=True)
class Lose:
    """It was active and is lost."""

    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now; look again soon, at the latest then."""

    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rest:
    """It is as it should be."""


Step = Start | Restart | Recover | Remove | Release | GiveUp | Abandon | Lose | Wait | Rest


def step(desired: Desired, sight: Sight, now: datetime) -> Step:
    """Decide the next step of one attempt."""
    if not desired.wanted:
        return _towards_release(desired, sight, now)
    if not desired.active:
        return _towards_active(desired, sight, now)
    return _stay_active(desired, sight, now)


def _towards_release(desired: Desired, sight: Sight, now: datetime) -> Step:
    if sight == "absent":
        return Release()
    if sight != "unknown":
        return Remove()
    if desired.again and now >= desired.deadline + PATIENCE:
        return Abandon("the machine of its GPU could not be reached to try it once more")
    return Wait()


def _towards_active(desired: Desired, sight: Sight, now: datetime) -> Step:
    if now < desired.deadline:
        return Wait(desired.deadline) if sight == "unknown" else Start(desired.deadline)
    if sight == "unknown":  # to try the same GPU again would mean to wait for its machine without end
        return GiveUp("its machine could not be reached in time", transient=False)
    return GiveUp("it could not be logged in to in time", transient=True)


def _stay_active(desired: Desired, sight: Sight, now: datetime) -> Step:
    if sight == "running":
        return Recover() if desired.unseen else Rest()
    if sight == "absent":
        return Lose("nothing of it is left on its machine, not even its disk")
    over = desired.lost_at is not None and now >= desired.lost_at
    if sight == "unknown":
        return Lose("its machine could not be reached for too long") if over else Wait(desired.lost_at)
    if over or desired.starts_failed >= MOST_RESTARTS:
        return Lose("it had stopped and could not be started again")
    return Restart()
