"""The one source of time: UTC, aware, and not fooled when somebody sets the clock.

The wall clock is read once, when the clock is made; from then on the kernel's boot clock (which also
counts while the machine is suspended) says how much later it is. Everything that asks for the time is
handed a `Clock`, so tests hand in one of their own.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]

UNLIMITED = datetime(9999, 12, 31, tzinfo=UTC)
"""“For ever”, as a time that compares and sorts like any other."""


def as_written(moment: datetime) -> str:
    """Write a moment as the API does: `YYYY-MM-DD HH:MM:SS`, or `unlimited`."""
    return "unlimited" if moment >= UNLIMITED else moment.strftime("%Y-%m-%d %H:%M:%S")


def how_long(until: datetime) -> str:
    """Say an availability in a sentence."""
    return "available without end" if until >= UNLIMITED else f"available until {as_written(until)} (UTC)"


class BootClock:
    """Wall time at the start plus what `CLOCK_BOOTTIME` has counted since.

    `wall`: the time now, if another clock than this computer's says it: processes that share a database go by
    the database's, so that they agree.
    """

    def __init__(self, wall: datetime | None = None) -> None:
        self._wall = wall or datetime.now(UTC)
        self._boot = time.clock_gettime(time.CLOCK_BOOTTIME)

    def __call__(self) -> datetime:
        """Tell the time."""
        return self._wall + timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME) - self._boot)

    def drift(self) -> float:
        """Seconds by which this computer's wall clock is off ours; positive if it is ahead."""
        return (datetime.now(UTC) - self()).total_seconds()
