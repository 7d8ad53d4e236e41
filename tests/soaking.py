"""How long the storms last: their short rounds in `script/test`, a time of one's own in `script/soak`.

A pytest plugin with one fixture, `soak`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Soak:
    """How long a storm lasts: `seconds`, 0 for the short one."""

    seconds: float

    def rounds(self, short: int) -> Iterator[int]:
        """Count rounds: so many, and on until the time is over."""
        end = time.monotonic() + self.seconds
        number = 0
        while number < short or time.monotonic() < end:
            yield number
            number += 1


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `script/soak` give each storm a time."""
    parser.addoption("--soak", type=float, default=0.0, help="seconds that each storm lasts at least")


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> Soak:
    """How long this storm lasts."""
    return Soak(float(request.config.getoption("--soak")))
