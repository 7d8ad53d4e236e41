"""Rented machines for the tests of logins: one with a sandbox and one without, each for a whole module."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from renting import Keys, Rented, free_port, keys, rented
from vectordash.server.drivers.local.sandbox import NoSandbox, Sandbox

__all__ = ["keys"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Rented]:
    """A machine in a sandbox."""
    with rented(tmp_path_factory.mktemp("sandboxed"), keys, None) as it:
        assert isinstance(it.driver.sandbox, Sandbox), it.driver.sandbox
        yield it


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Rented]:
    """A machine without a sandbox."""
    with rented(tmp_path_factory.mktemp("plain"), keys, NoSandbox("the test wants none")) as it:
        yield it


@pytest.fixture(params=["machine", "plain"])
def either(request: pytest.FixtureRequest) -> Rented:
    """A machine in a sandbox, and then one without."""
    it = request.getfixturevalue(request.param)
    assert isinstance(it, Rented)
    return it


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """Wait for something that happens by itself."""

    def wait(condition: Callable[[], Any], within: float = 5.0) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)

    return wait


@pytest.fixture
def a_free_port() -> int:
    """A port that nobody listens on."""
    return free_port()
