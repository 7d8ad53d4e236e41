"""A fake cluster that several processes share: what its server adds to the contract."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio
import uvloop

from renting import Keys, specify
from vectordash.server.drivers.base import DriverError, PortBusy, SeenInstance, Spec, StartFailed, Unreachable
from vectordash.server.drivers.fake import Call, FakeDriver, Fault, simple_machine
from vectordash.server.drivers.fake.chance import ShakyFake
from vectordash.server.drivers.fake.served import ServedFake, serving
from vectordash.server.trouble import Trouble

pytestmark = pytest.mark.asyncio

MakeSpec = Callable[..., Spec]
FOREVER = float("inf")


class Watched(FakeDriver):
    """A cluster that tells when a call has begun, and when one was dropped."""

    def __init__(self) -> None:
        super().__init__([simple_machine("m1", "NVIDIA TITAN V", "NVIDIA TITAN V"), simple_machine("m2")])
        self.begun, self.dropped = asyncio.Event(), asyncio.Event()

    async def _meet(self, call: Call, gpus: tuple[str, ...] = ()) -> Fault | None:
        self.begun.set()
        try:
            return await super()._meet(call, gpus)
        except asyncio.CancelledError:
            self.dropped.set()
            raise


class Dawdling(ShakyFake):
    """A cluster that does what it is told and then never says so."""

    async def _take_time(self, seconds: float) -> None:
        if self.there:
            await asyncio.Event().wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fake.sock"


@pytest_asyncio.fixture
async def cluster(path: Path) -> AsyncIterator[Watched]:
    """A cluster that is served."""
    made = Watched()
    async with asyncio.timeout(30), serving(made, path):
        yield made


@pytest.fixture
def client(cluster: Watched, path: Path) -> ServedFake:
    return ServedFake(path)


@pytest.fixture
def spec(make_spec: MakeSpec) -> Spec:
    return on_card(make_spec(), 0)


def on_card(spec: Spec, card: int) -> Spec:
    return dataclasses.replace(spec, machine="m1", gpus=(f"GPU-m1-{card}",))


# The socket


async def test_only_its_owner_may_open_the_socket_which_ends_with_the_server(path: Path) -> None:
    async with serving(FakeDriver([]), path):
        assert path.stat().st_mode & 0o777 == 0o600

    assert list(path.parent.iterdir()) == []


async def test_a_living_server_keeps_its_place(cluster: Watched, client: ServedFake, path: Path) -> None:
    with pytest.raises(Trouble, match="another fake cluster"):
        async with serving(FakeDriver([], "usurper"), path):
            pass

    assert await client.identity() == "fake-1"


async def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")

    with pytest.raises(Trouble, match="no socket"):
        async with serving(FakeDriver([]), path):
            pass

    assert path.read_text() == "precious"


async def test_a_server_that_ends_hangs_up(path: Path) -> None:
    client = ServedFake(path)
    async with serving(Watched(), path):
        news = asyncio.create_task(client.changed())
        await client.identity()

    with pytest.raises(Unreachable, match="hung up"):
        await news
    with pytest.raises(Unreachable, match="nobody serves"):
        await client.identity()


async def test_the_servers_loop_speaks_to_it_too(path: Path, keys: Keys) -> None:
    """The control plane runs on uvloop."""

    async def speak() -> None:
        client, spec = ServedFake(path), on_card(specify(keys), 0)
        with pytest.raises(Unreachable):
            await client.identity()
        async with serving(Watched(), path):
            await client.ensure(spec)
            await client.order(Fault("remove", delay=FOREVER))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.remove(spec.name), 0.05)
            assert await client.recall(spec.name) == spec

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(speak())

    await asyncio.to_thread(run)


# Errors


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("no answer"),
        StartFailed("not now", transient=True),
        StartFailed("never"),
        PortBusy(4711),
        DriverError("no"),
    ],
    ids=repr,
)
async def test_an_error_of_a_driver_travels_as_itself(
    client: ServedFake, spec: Spec, error: DriverError
) -> None:
    await client.order(Fault("ensure", error))

    with pytest.raises(DriverError) as caught:
        await client.ensure(spec)

    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    for field in ("transient", "port"):
        assert getattr(caught.value, field, None) == getattr(error, field, None)


async def test_any_other_error_is_one_of_the_driver_that_names_it(client: ServedFake) -> None:
    await client.order(Fault("identity", ZeroDivisionError("by zero")))

    with pytest.raises(DriverError, match="ZeroDivisionError: by zero"):
        await client.identity()
    with pytest.raises(DriverError, match="KeyError: 'vd-never'"):
        await client.stop("vd-never")


async def test_an_ordered_fault_strikes_as_ordered(
    client: ServedFake, spec: Spec, make_spec: MakeSpec
) -> None:
    await client.order(Fault("ensure", StartFailed("after the deed"), after=True, gpu=spec.gpus[0], times=2))

    await client.ensure(on_card(make_spec("vd-two"), 1))
    for _ in range(2):
        with pytest.raises(StartFailed, match="after the deed"):
            await client.ensure(spec)
    await client.ensure(spec)

    assert {one.name for one in await client.there()} == {"vd-one", "vd-two"}


# Calls that are given up


async def test_a_call_that_is_given_up_is_dropped_by_the_cluster(
    cluster: Watched, client: ServedFake, spec: Spec
) -> None:
    await client.order(Fault("ensure", delay=FOREVER))
    call = asyncio.create_task(client.ensure(spec))
    await cluster.begun.wait()

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await cluster.dropped.wait()
    assert await client.there() == []
    await client.ensure(spec)
    assert [one.name for one in await client.there()] == [spec.name]


async def test_a_call_that_is_given_up_after_the_deed_has_taken_effect(path: Path, spec: Spec) -> None:
    cluster = Dawdling([simple_machine("m1", "NVIDIA TITAN V")])
    client = ServedFake(path)
    async with asyncio.timeout(10), serving(cluster, path):
        call = asyncio.create_task(client.ensure(spec))
        while not cluster.there:
            await asyncio.sleep(0)

        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        assert [one.name for one in await client.there()] == [spec.name]


# News


async def test_each_client_hears_the_news(client: ServedFake, path: Path, spec: Spec) -> None:
    clients = [client, ServedFake(path)]
    await client.ensure(spec)
    waiting = [asyncio.create_task(one.changed()) for one in clients]
    await client.instances()
    assert not any(task.done() for task in waiting)

    await client.stop(spec.name)

    await asyncio.gather(*waiting)


async def test_a_client_that_looked_away_hears_the_news_later_and_once(
    client: ServedFake, path: Path, spec: Spec
) -> None:
    other = ServedFake(path)
    await client.ensure(spec)
    await client.vanish(spec.name)
    await client.changed()
    await client.come_back(spec.name)
    await client.changed()

    await other.changed()

    for one in (client, other):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.changed(), 0.05)


async def test_news_that_were_given_up_are_heard_at_the_next_call(client: ServedFake, spec: Spec) -> None:
    await client.ensure(spec)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.changed(), 0.05)
    await client.stop(spec.name)

    await client.changed()


async def test_another_life_of_the_cluster_is_news(path: Path, spec: Spec) -> None:
    client = ServedFake(path)
    for _ in range(2):
        async with asyncio.timeout(10), serving(Watched(), path):
            await client.ensure(spec)
            await client.stop(spec.name)
            await client.changed()


# What is done behind a driver's back, and what is recorded


async def test_all_that_is_there_is_shown_though_a_list_hides_it(
    cluster: Watched, client: ServedFake, spec: Spec
) -> None:
    await client.ensure(spec)
    cluster.hidden.add(spec.name)
    await client.stop(spec.name)

    assert await client.instances() == []
    assert await client.there() == [SeenInstance(spec.name, "stopped", spec.gpus, spec.port)]


async def test_two_on_one_card_are_a_violation_that_stays_on_record(
    client: ServedFake, spec: Spec, make_spec: MakeSpec
) -> None:
    await client.ensure(spec)
    assert await client.violations() == []

    await client.ensure(on_card(make_spec("vd-two"), 0))
    await client.remove("vd-two")

    assert await client.violations() == ["vd-one and vd-two both run on GPU-m1-0"]


async def test_two_at_one_port_of_a_machine_are_a_violation(
    client: ServedFake, spec: Spec, make_spec: MakeSpec
) -> None:
    await client.ensure(spec)
    await client.vanish(spec.name)
    await client.ensure(on_card(make_spec("vd-two", port=spec.port), 1))

    await client.come_back(spec.name)

    assert await client.violations() == [f"vd-two and vd-one both run at port {spec.port} of m1"]


async def test_one_after_the_other_or_elsewhere_is_no_violation(
    client: ServedFake, spec: Spec, make_spec: MakeSpec
) -> None:
    await client.ensure(spec)
    await client.ensure(spec)
    await client.stop(spec.name)
    await client.ensure(on_card(make_spec("vd-two"), 0))
    await client.remove("vd-two")
    await client.ensure(spec)
    elsewhere = make_spec("vd-three", port=spec.port)
    await client.ensure(dataclasses.replace(elsewhere, machine="m2", address="127.0.0.2"))

    assert await client.violations() == []


# Chance


async def outcomes(spec: Spec, seed: int, share: float) -> list[tuple[str, str, bool]]:
    """Make many calls of a shaky cluster: which it was, how it ended, and whether the instance was there."""
    machine = simple_machine("m1", "NVIDIA TITAN V")
    chance = Random(seed)  # noqa: S311 - nothing secret
    cluster = ShakyFake([machine], share=share, longest=0, chance=chance)
    ended = []
    for _ in range(100):
        for name, call in (
            ("ensure", cluster.ensure(spec)),
            ("instance", cluster.instance(spec.name)),
            ("remove", cluster.remove(spec.name)),
        ):
            how = "well"
            try:
                await call
            except DriverError as error:
                how = f"{type(error).__name__}: {error}"
            ended.append((name, how, spec.name in cluster.there))
    return ended


async def test_by_chance_calls_go_wrong_before_or_after_the_deed(spec: Spec) -> None:
    ended = await outcomes(spec, 1, 0.5)

    wrong = [each for each in ended if each[1] != "well"]
    assert len(ended) / 4 < len(wrong) < len(ended) / 2
    assert {how.partition(":")[0] for _, how, _ in wrong} == {"DriverError", "StartFailed", "Unreachable"}
    assert {there for call, how, there in wrong if call == "ensure"} == {True, False}
    assert {there for call, how, there in wrong if call == "remove"} == {True, False}


async def test_the_same_seed_gives_the_same_mishaps(spec: Spec) -> None:
    assert await outcomes(spec, 1, 0.5) == await outcomes(spec, 1, 0.5) != await outcomes(spec, 2, 0.5)


async def test_without_a_share_everything_goes_well(spec: Spec) -> None:
    assert {how for _, how, _ in await outcomes(spec, 1, 0)} == {"well"}


async def test_what_was_ordered_comes_first(spec: Spec) -> None:
    cluster = ShakyFake([simple_machine("m1", "NVIDIA TITAN V")], share=1)
    cluster.faults.append(Fault("ensure", StartFailed("as ordered")))

    with pytest.raises(StartFailed, match="as ordered"):
        await cluster.ensure(spec)


# A process of its own


@contextlib.asynccontextmanager
async def process(path: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the program, from the moment when it listens."""
    program = (sys.executable, "-m", "vectordash.server.drivers.fake", str(path), *options)
    started = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    assert started.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = await started.stdout.readline()
        assert str(path).encode() in line
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.communicate()


async def test_killed_it_is_unreachable_and_another_takes_its_place(
    path: Path, make_spec: MakeSpec, keys: Keys
) -> None:
    client = ServedFake(path)
    options = ("--faults", "0", "--machines", "2", "--gpus", "3", "--delay", "0.001", "--name", "fake-7")
    async with process(path, *options) as first:
        machines = await client.machines()
        spec = dataclasses.replace(
            make_spec(), machine="m2", address=machines[1].address, gpus=(machines[1].gpus[2].uuid,)
        )
        await client.ensure(spec)
        await client.login(keys.access(spec))
        assert await client.recall(spec.name) == spec
        news = asyncio.create_task(client.changed())
        await client.identity()
        first.send_signal(signal.SIGKILL)
        with pytest.raises(Unreachable, match="hung up"):
            await news
        await first.wait()

    with pytest.raises(Unreachable, match="nobody serves"):
        await client.identity()
    async with process(path, *options):
        assert await client.identity() == "fake-7"
        assert await client.there() == []

    assert [(one.name, one.address, len(one.gpus)) for one in machines] == [
        ("m1", "127.1.0.1", 3),
        ("m2", "127.1.0.2", 3),
    ]
    assert {gpu.model for one in machines for gpu in one.gpus} == {"NVIDIA GeForce GTX 1080 Ti"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_told_to_end_it_takes_its_socket_along(path: Path, number: signal.Signals) -> None:
    async with process(path) as running:
        news = asyncio.create_task(ServedFake(path).changed())
        await ServedFake(path).identity()
        running.send_signal(number)
        with pytest.raises(Unreachable):
            await news

        assert await running.wait() == 0
        assert not os.path.lexists(path)


async def test_a_second_one_on_the_same_socket_ends_with_a_sentence(cluster: Watched, path: Path) -> None:
    program = (sys.executable, "-m", "vectordash.server.drivers.fake", str(path))
    second = await asyncio.create_subprocess_exec(*program, stderr=asyncio.subprocess.PIPE)
    _, said = await second.communicate()

    assert second.returncode == 1
    assert b"another fake cluster is served" in said
    assert len(said.splitlines()) == 1
