"""The words and rules of an instance's life. Pure.

An instance is *pending* until a login worked, then *active*, and *complete* once it ended, why ever. A start
that fails is tried on other GPUs of the same type, at most `MOST_ATTEMPTS` times; where no other is free and
the fault may pass, once more on the same one.
"""

from datetime import datetime
from typing import Literal

from vectordash.wire.instance import Status

EndReason = Literal[
    "deleted",  # by its renter
    "not_started",  # every attempt failed; costs nothing
    "lost",  # it was active and is gone, or could not be reached for too long
    "time_limit",  # its account's limit of hours
    "reclaimed",  # the promise was over, and the operator or host needed the GPU
    "broken",  # the operator ended it before what was promised was over
]

MOST_ATTEMPTS = 3
MOST_RESTARTS = 3
"""Failed starts of a stopped, once active instance before it counts as lost."""

ERRORS: frozenset[EndReason] = frozenset({"not_started", "lost", "broken"})
"""Ends that nobody wished for."""


def status(active_at: datetime | None, ended_at: datetime | None) -> Status:
    """Tell the status that renters see."""
    if ended_at is not None:
        return "complete"
    return "active" if active_at is not None else "pending"


def after_failure(
    *, attempts: int, transient: bool, same_tried_again: bool, other_free: bool
) -> Literal["other", "same", "end"]:
    """Decide what follows a failed start: another GPU, the same one once more, or the end."""
    if attempts >= MOST_ATTEMPTS:
        return "end"
    if other_free:
        return "other"
    return "same" if transient and not same_tried_again else "end"
