"""A fake cluster that goes wrong by chance: for long runs, whose end must be right whatever went wrong.

It keeps to the protocol: only what starts fails to start, and a look that goes wrong was not answered. What
was ordered comes first. The same seed gives the same mishaps for the same calls in the same order.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from vectordash.server.drivers.base import DriverError, Spec, StartFailed, Unreachable
from vectordash.server.drivers.fake.driver import Call, FakeDriver, Fault

_DEEDS = ("ensure", "remove")


@dataclass
class ShakyFake(FakeDriver):
    """A cluster whose calls take time, before the deed and after it, and some of which go wrong."""

    share: float = 0.0
    """How many of the calls that may go wrong do: 0 to 1."""
    delay: float = 0.0
    """Seconds that a call takes, more or less."""
    longest: float = 1.0
    """Seconds that a late answer may take."""
    chance: Random = field(default_factory=Random)

    async def ensure(self, spec: Spec) -> None:
        """See `Driver`."""
        await super().ensure(spec)
        await self._take_time(self.delay / 2)

    async def remove(self, name: str) -> None:
        """See `Driver`."""
        await super().remove(name)
        await self._take_time(self.delay / 2)

    async def _meet(self, call: Call, gpus: tuple[str, ...] = ()) -> Fault | None:
        await self._take_time(self.delay / 2 if call in _DEEDS else self.delay)
        return await super()._meet(call, gpus)

    async def _take_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.chance.uniform(0.5, 1.5))

    def _due(self, call: Call, gpus: tuple[str, ...]) -> Fault | None:
        return super()._due(call, gpus) or self._mishap(call)

    def _mishap(self, call: Call) -> Fault | None:
        errors = _ERRORS.get(call, ())
        if not errors or self.chance.random() >= self.share:
            return None
        when = self.chance.choice(("before", "after", "late") if call in _DEEDS else ("before", "late"))
        if when == "late":
            return Fault(call, delay=self.chance.uniform(0, self.longest))
        return Fault(call, self.chance.choice(errors)(), after=when == "after")


def _not_now() -> DriverError:
    return StartFailed("the fake cluster lacks something for the moment", transient=True)


def _never() -> DriverError:
    return StartFailed("the fake cluster cannot start this")


def _no_answer() -> DriverError:
    return Unreachable("the fake cluster did not answer")


def _refused() -> DriverError:
    return DriverError("the fake cluster refuses")


_ERRORS: dict[Call, tuple[Callable[[], DriverError], ...]] = {
    "ensure": (_not_now, _never, _no_answer),
    "login": (_not_now, _never, _no_answer),
    "remove": (_refused, _no_answer),
    "instance": (_no_answer,),
}
