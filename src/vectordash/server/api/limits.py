"""Rate limits: a bucket a token, and one an address where no valid token was sent.

Counted in the memory of this process alone. A bucket holds `burst` requests and is refilled by `rate` a
second; an untouched one is full, so full ones are forgotten.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vectordash.wire.errors import TooManyRequests

_SWEEP_AT = 10_000
"""Buckets after which full ones are forgotten."""


@dataclass(slots=True)
class Limit:
    """One kind of bucket, and all buckets of it."""

    name: str
    rate: int
    burst: int
    seconds: Callable[[], float] = time.monotonic
    _buckets: dict[object, tuple[float, float]] = field(default_factory=dict)
    """What is left, and when that was true."""

    def spend(self, who: object) -> None:
        """Count one request. Raises `TooManyRequests`."""
        now, left = self._left(who)
        if left < 1:
            raise TooManyRequests(self.rate, self.burst, math.ceil((1 - left) / self.rate))
        self._buckets[who] = (left - 1, now)
        if len(self._buckets) > _SWEEP_AT:
            self._forget(now)

    def headers(self, who: object) -> list[tuple[bytes, bytes]]:
        """Tell the rule, and what is left by it."""
        _, left = self._left(who)
        window = math.ceil(self.burst / self.rate)
        return [
            (b"ratelimit-policy", f'"{self.name}";q={self.burst};w={window}'.encode()),
            (b"ratelimit", f'"{self.name}";r={int(left)};t={math.ceil(1 / self.rate)}'.encode()),
        ]

    def _left(self, who: object) -> tuple[float, float]:
        """What time is it, and what is in this bucket?"""
        now = self.seconds()
        left, then = self._buckets.get(who, (float(self.burst), now))
        return now, min(self.burst, left + (now - then) * self.rate)

    def _forget(self, now: float) -> None:
        self._buckets = {
            who: (left, then)
            for who, (left, then) in self._buckets.items()
            if left + (now - then) * self.rate < self.burst
        }
