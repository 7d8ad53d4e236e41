"""What an instance gets of its machine: a share, and a port."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectordash.server.instances.placement import Share, next_port, share


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        pytest.param((16, 64, 1000, 4), Share(4, 15, 225), id="a quarter each"),
        pytest.param((16, 64, 1000, 1), Share(16, 62, 900), id="a machine with one card"),
        pytest.param((6, 16, 100, 4), Share(1, 3, 22), id="rounded down"),
        pytest.param((2, 2, 1, 8), Share(1, 1, 1), id="never nothing"),
        pytest.param((8, 32, 100, 0), Share(8, 30, 90), id="its cards are gone for now"),
    ],
)
def test_each_card_gets_an_equal_share(machine: tuple[int, int, int, int], expected: Share) -> None:
    cores, ram, disk, gpus = machine

    assert share(cores=cores, ram=ram, disk=disk, gpus=gpus) == expected


@given(
    cores=st.integers(1, 256), ram=st.integers(3, 4096), disk=st.integers(2, 10**6), gpus=st.integers(1, 16)
)
def test_all_shares_together_fit_the_machine(cores: int, ram: int, disk: int, gpus: int) -> None:
    part = share(cores=cores, ram=ram, disk=disk, gpus=gpus)

    assert part.cores * gpus <= max(cores, gpus)
    assert part.ram * gpus <= max(ram - 2, gpus)
    assert part.storage * gpus <= max(disk, gpus)


@pytest.mark.parametrize(
    ("last_given", "held", "expected"),
    [
        pytest.param(0, set(), 20, id="the first one"),
        pytest.param(20, set(), 21, id="the one after the last"),
        pytest.param(20, {21, 22}, 23, id="past those held"),
        pytest.param(23, set(), 20, id="round the end"),
        pytest.param(22, {23, 20}, 21, id="round the end, past those held"),
        pytest.param(21, {22, 23, 20}, 21, id="the last one itself, if it is the only one"),
        pytest.param(21, {20, 21, 22, 23}, None, id="all are held"),
        pytest.param(99, set(), 20, id="the range was moved"),
    ],
)
def test_ports_are_given_in_a_circle(last_given: int, held: set[int], expected: int | None) -> None:
    assert next_port(20, 23, last_given, held) == expected


def test_a_released_port_is_given_last() -> None:
    given, last = [], 0
    for _ in range(8):
        last = next_port(20, 23, last, set()) or 0
        given.append(last)

    assert given == [20, 21, 22, 23, 20, 21, 22, 23]
