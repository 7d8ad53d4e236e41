"""What every driver promises (`drivers/base.py`), shown of the fake one and of real ones alike.

The reconciler is tested on the fake, so the fake must not lie: whatever a test there relies on stands here.
A new driver gets a `Site` and passes.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from renting import Keys
from vectordash.server.drivers.base import Driver, PortBusy, SeenInstance, SeenMachine, Spec, StartFailed
from vectordash.server.drivers.fake import FakeDriver, simple_machine
from vectordash.server.drivers.fake.served import ServedFake, serving
from vectordash.server.drivers.local import processes
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.drivers.local.sandbox import NoSandbox
from vectordash.server.vault import Vault

pytestmark = pytest.mark.asyncio

MakeSpec = Callable[..., Spec]


@dataclass
class Site:
    """A cluster, the driver that speaks to it, and what a test can do to it behind the driver's back."""

    driver: Driver
    again: Callable[[], Driver]
    """Make the driver of the same cluster that the next process would."""
    stop: Callable[[str], None]
    """Let an instance stop by itself."""
    occupy: Callable[[int], None]
    """Let another program use a port, which it may really do."""
    machine: SeenMachine

    def fit(self, spec: Spec, card: int = 0) -> Spec:
        """Put a specification on one of the machine's cards."""
        return dataclasses.replace(spec, machine=self.machine.name, gpus=(self.machine.gpus[card].uuid,))


@contextlib.asynccontextmanager
async def fake_site(_: Path) -> AsyncIterator[Site]:
    machine = simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 4)
    driver = FakeDriver([machine])
    yield Site(driver, lambda: driver, driver.stop, driver.busy_ports.add, machine)


@contextlib.asynccontextmanager
async def served_site(path: Path) -> AsyncIterator[Site]:
    machine = simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 4)
    cluster = FakeDriver([machine])
    async with serving(cluster, path):
        yield Site(ServedFake(path), lambda: ServedFake(path), cluster.stop, cluster.busy_ports.add, machine)


@contextlib.asynccontextmanager
async def local_site(folder: Path, sandbox: NoSandbox | None = None) -> AsyncIterator[Site]:
    def make() -> LocalDriver:
        return LocalDriver(folder, simulate=True, sandbox=sandbox, vault=Vault(bytes(32)))

    driver = make()

    def stop(name: str) -> None:
        for process in processes.family(driver._mark(name)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    yield Site(driver, make, stop, lambda _: None, driver._describe())


def plain_site(folder: Path) -> contextlib.AbstractAsyncContextManager[Site]:
    return local_site(folder, NoSandbox("the test wants none"))


@pytest_asyncio.fixture(
    params=[
        pytest.param(fake_site, id="fake"),
        pytest.param(served_site, id="fake-served"),
        pytest.param(local_site, id="local", marks=pytest.mark.needs("bwrap")),
        pytest.param(plain_site, id="local-plain"),
    ]
)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """Make a cluster of each kind, that leaves nothing behind."""
    made: Site
    async with request.param(tmp_path / "cluster") as made:
        yield made
        for one in await made.driver.instances():
            await made.driver.remove(one.name)
        await made.driver.close()


@pytest.fixture
def spec(site: Site, make_spec: MakeSpec) -> Spec:
    """Make the specification of an instance on the first card."""
    return site.fit(make_spec())


def seen(spec: Spec, state: str = "running") -> SeenInstance:
    return SeenInstance(spec.name, state, spec.gpus, spec.port)  # type: ignore[arg-type]


async def stopped(site: Site, spec: Spec) -> None:
    """Stop it, and wait until that shows."""
    site.stop(spec.name)
    async with asyncio.timeout(5):
        while await site.driver.instance(spec.name) != seen(spec, "stopped"):
            await asyncio.sleep(0.01)


# The cluster and its machines


async def test_a_cluster_says_the_same_of_itself_to_whoever_asks(site: Site) -> None:
    first = await site.driver.identity()
    again = site.again()

    assert first
    assert await again.identity() == await site.driver.identity() == first
    if again is not site.driver:
        await again.close()


async def test_an_inventory_is_complete_and_stays_the_same(site: Site) -> None:
    (machine,) = await site.driver.machines()

    assert machine.online
    assert machine.name
    assert machine.address
    assert machine.cpu
    assert min(machine.cores, machine.ram, machine.disk) >= 1
    assert len({gpu.uuid for gpu in machine.gpus}) == len(machine.gpus) > 0
    assert all(gpu.model and gpu.vram for gpu in machine.gpus)
    (again,) = await site.driver.machines()
    assert again.gpus == machine.gpus


async def test_an_empty_cluster_has_no_instances(site: Site) -> None:
    assert list(await site.driver.instances()) == []


# Making


async def test_what_was_ensured_runs_and_is_seen_with_its_gpu_and_port(site: Site, spec: Spec) -> None:
    await site.driver.ensure(spec)

    assert await site.driver.instance(spec.name) == seen(spec)
    assert list(await site.driver.instances()) == [seen(spec)]


async def test_ensuring_again_changes_nothing(site: Site, spec: Spec, keys: Keys) -> None:
    await site.driver.ensure(spec)

    await site.driver.ensure(spec)

    assert list(await site.driver.instances()) == [seen(spec)]
    await site.driver.login(keys.access(spec))


async def test_ensured_twice_at_once_there_is_one(site: Site, spec: Spec, keys: Keys) -> None:
    await asyncio.gather(*(site.driver.ensure(spec) for _ in range(3)))

    assert list(await site.driver.instances()) == [seen(spec)]
    await site.driver.login(keys.access(spec))


async def test_several_run_side_by_side(site: Site, make_spec: MakeSpec, keys: Keys) -> None:
    specs = [site.fit(make_spec(f"vd-{number}"), number) for number in range(3)]

    await asyncio.gather(*(site.driver.ensure(one) for one in specs))

    for one in specs:
        await site.driver.login(keys.access(one))
    assert {one.name for one in await site.driver.instances()} == {one.name for one in specs}


async def test_a_stopped_one_is_still_there_and_starts_again(site: Site, spec: Spec, keys: Keys) -> None:
    await site.driver.ensure(spec)
    await stopped(site, spec)
    assert list(await site.driver.instances()) == [seen(spec, "stopped")]

    await site.driver.ensure(spec)

    assert await site.driver.instance(spec.name) == seen(spec)
    await site.driver.login(keys.access(spec))


async def test_one_that_stops_by_itself_is_news(site: Site, spec: Spec) -> None:
    await site.driver.ensure(spec)

    site.stop(spec.name)

    async with asyncio.timeout(5):
        await site.driver.changed()


async def test_the_next_process_sees_and_removes_what_runs(site: Site, spec: Spec, keys: Keys) -> None:
    await site.driver.ensure(spec)
    again = site.again()

    assert list(await again.instances()) == [seen(spec)]
    await again.ensure(spec)
    await again.login(keys.access(spec))
    await again.remove(spec.name)

    assert await site.driver.instance(spec.name) is None
    if again is not site.driver:
        await again.close()


async def test_a_port_that_another_program_uses_is_told_apart(
    site: Site, make_spec: MakeSpec, busy_port: int
) -> None:
    site.occupy(busy_port)

    with pytest.raises(PortBusy) as caught:
        await site.driver.ensure(site.fit(make_spec(port=busy_port)))

    assert caught.value.port == busy_port
    assert caught.value.transient


async def test_a_port_that_another_instance_uses_is_told_apart(
    site: Site, spec: Spec, make_spec: MakeSpec, keys: Keys
) -> None:
    await site.driver.ensure(spec)

    with pytest.raises(PortBusy):
        await site.driver.ensure(site.fit(make_spec("vd-two", port=spec.port), 1))

    await site.driver.login(keys.access(spec))


async def test_after_a_busy_port_another_one_will_do(
    site: Site, make_spec: MakeSpec, keys: Keys, busy_port: int
) -> None:
    site.occupy(busy_port)
    with contextlib.suppress(PortBusy):
        await site.driver.ensure(site.fit(make_spec(port=busy_port)))
    moved = site.fit(make_spec())

    await site.driver.ensure(moved)

    await site.driver.login(keys.access(moved))
    assert await site.driver.instance(moved.name) == seen(moved)


async def test_a_gpu_that_is_not_there_is_refused_for_good(site: Site, spec: Spec) -> None:
    with pytest.raises(StartFailed, match="GPU-none") as caught:
        await site.driver.ensure(dataclasses.replace(spec, gpus=("GPU-none",)))

    assert not caught.value.transient


# Logging in


async def test_a_login_waits_for_its_instance(site: Site, spec: Spec, keys: Keys) -> None:
    async with asyncio.timeout(10):
        await asyncio.gather(site.driver.login(keys.access(spec)), site.driver.ensure(spec))


async def test_a_login_that_nobody_answers_waits_on(site: Site, spec: Spec, keys: Keys) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await site.driver.login(keys.access(spec))


async def test_a_wrong_host_key_is_noticed(site: Site, spec: Spec, keys: Keys, other_keys: Keys) -> None:
    await site.driver.ensure(spec)

    with pytest.raises(StartFailed, match="host key"):
        await site.driver.login(dataclasses.replace(keys.access(spec), host_key=other_keys.host_public))


async def test_a_wrong_key_is_refused(site: Site, spec: Spec, keys: Keys, other_keys: Keys) -> None:
    await site.driver.ensure(spec)

    with pytest.raises(StartFailed, match="refuses"):
        await site.driver.login(dataclasses.replace(keys.access(spec), pem=other_keys.pem))


async def test_a_wrong_user_is_refused(site: Site, spec: Spec, keys: Keys) -> None:
    await site.driver.ensure(spec)

    with pytest.raises(StartFailed, match="refuses"):
        await site.driver.login(keys.access(spec, "root"))


async def test_the_renters_user_is_the_drivers(site: Site, spec: Spec, keys: Keys) -> None:
    await site.driver.ensure(spec)

    await site.driver.login(keys.access(spec, site.driver.user))


# Recalling


async def test_what_runs_is_recalled_to_the_letter_by_the_next_process_too(site: Site, spec: Spec) -> None:
    await site.driver.ensure(spec)
    again = site.again()

    assert await site.driver.recall(spec.name) == await again.recall(spec.name) == spec
    if again is not site.driver:
        await again.close()


async def test_a_stopped_one_is_recalled(site: Site, spec: Spec) -> None:
    await site.driver.ensure(spec)
    await stopped(site, spec)

    assert await site.driver.recall(spec.name) == spec


async def test_started_from_something_else_that_is_recalled(
    site: Site, spec: Spec, make_spec: MakeSpec
) -> None:
    await site.driver.ensure(spec)
    await stopped(site, spec)
    moved = dataclasses.replace(site.fit(make_spec(), 1), hostname="calm-heron")

    await site.driver.ensure(moved)

    assert await site.driver.recall(spec.name) == moved


async def test_ensured_while_it_runs_what_it_was_made_from_is_recalled(
    site: Site, spec: Spec, make_spec: MakeSpec
) -> None:
    await site.driver.ensure(spec)

    await site.driver.ensure(site.fit(make_spec()))

    assert await site.driver.recall(spec.name) == spec


async def test_what_is_recalled_is_enough_to_start_it_again(site: Site, spec: Spec, keys: Keys) -> None:
    await site.driver.ensure(spec)
    await stopped(site, spec)
    recalled = await site.driver.recall(spec.name)
    assert recalled is not None

    await site.driver.ensure(recalled)

    await site.driver.login(keys.access(spec))


async def test_an_unknown_or_removed_one_is_not_recalled(site: Site, spec: Spec) -> None:
    assert await site.driver.recall(spec.name) is None
    await site.driver.ensure(spec)
    await site.driver.remove(spec.name)

    assert await site.driver.recall(spec.name) is None


# Looking and removing


async def test_an_unknown_one_is_none_and_its_removal_a_success(site: Site) -> None:
    assert await site.driver.instance("vd-never") is None
    await site.driver.remove("vd-never")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
async def test_of_a_removed_one_nothing_is_left(site: Site, spec: Spec, keys: Keys, running: bool) -> None:
    await site.driver.ensure(spec)
    if not running:
        await stopped(site, spec)

    await site.driver.remove(spec.name)

    assert await site.driver.instance(spec.name) is None
    assert list(await site.driver.instances()) == []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await site.driver.login(keys.access(spec))


async def test_removing_again_is_a_success(site: Site, spec: Spec) -> None:
    await site.driver.ensure(spec)

    await asyncio.gather(site.driver.remove(spec.name), site.driver.remove(spec.name))
    await site.driver.remove(spec.name)

    assert await site.driver.instance(spec.name) is None


async def test_a_removal_leaves_the_others_alone(
    site: Site, spec: Spec, make_spec: MakeSpec, keys: Keys
) -> None:
    other = site.fit(make_spec("vd-one-more"), 1)
    await asyncio.gather(site.driver.ensure(spec), site.driver.ensure(other))

    await site.driver.remove(spec.name)

    assert list(await site.driver.instances()) == [seen(other)]
    await site.driver.login(keys.access(other))


async def test_a_removed_port_can_be_used_again(
    site: Site, spec: Spec, make_spec: MakeSpec, keys: Keys
) -> None:
    await site.driver.ensure(spec)
    await site.driver.remove(spec.name)
    other = site.fit(make_spec("vd-two", port=spec.port))

    await site.driver.ensure(other)

    await site.driver.login(keys.access(other))


@pytest.mark.parametrize("after", [0.0, 0.01, 0.05], ids=lambda seconds: f"{seconds:g}s")
async def test_a_start_that_was_given_up_leaves_what_a_removal_clears(
    site: Site, spec: Spec, after: float
) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(after):
            await site.driver.ensure(spec)

    await site.driver.remove(spec.name)

    assert await site.driver.instance(spec.name) is None
    assert list(await site.driver.instances()) == []


async def test_a_start_that_was_given_up_can_be_begun_again(site: Site, spec: Spec, keys: Keys) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await site.driver.ensure(spec)

    await site.driver.ensure(spec)

    async with asyncio.timeout(10):
        await site.driver.login(keys.access(spec))
    assert await site.driver.instance(spec.name) == seen(spec)
