"""Orphans: what a restored store has never heard of, from the pass that finds it to the operator's word."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from cloud import NOON, Cloud
from sights import attempts_of, demand_order, gpu, orphan_names, reach, row_of
from vectordash.server import audit
from vectordash.server.accounts import service as accounts
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Access, DriverError, SeenInstance, Spec, Unreachable
from vectordash.server.drivers.fake import FakeDriver, FakeInstance, Fault
from vectordash.server.instances import adoption, sightings
from vectordash.server.instances.adoption import Adopted, Wish
from vectordash.server.instances.tables import attempts, events, idempotency, instances
from vectordash.server.machines import store as machines
from vectordash.server.machines.store import Orphan
from vectordash.server.machines.tables import gpus
from vectordash.wire.errors import BadRequest

pytestmark = pytest.mark.asyncio

ADA = "ada@example.org"


def forget(connection: Connection, key: str) -> None:
    """Let the store be as it was before this was rented."""
    held = select(attempts.c.gpu_id).where(attempts.c.instance == key)
    connection.execute(update(gpus).where(gpus.c.id.in_(held)).values(free=True))
    for table in (events, idempotency, attempts):
        connection.execute(delete(table).where(table.c.instance == key))
    connection.execute(delete(instances).where(instances.c.key == key))


async def restore(cloud: Cloud, *keys: str) -> None:
    """Go back to a backup from before these were rented."""
    for key in keys:
        await cloud.plane.store.write(forget, key)


async def orphan(cloud: Cloud, name: str = "one", kind: str = "1080 ti") -> str:
    """Rent, and let the store forget it; gives the driver name once a pass has found it."""
    key = (await cloud.rent(name, kind))["key"]
    await cloud.settle()
    (held,) = await cloud.plane.store.read(attempts_of, key)
    await restore(cloud, key)
    await cloud.settle()
    return held.driver_name


def another(cloud: Cloud, like: str, name: str, **changes: Any) -> str:
    """Put another one beside an orphan that is there."""
    spec = dataclasses.replace(cloud.driver.there[like].spec, name=name, **changes)
    cloud.driver.there[name] = FakeInstance(spec)
    return name


async def adopt(cloud: Cloud, orphan: str, email: str = ADA, **how: Any) -> Adopted:
    """Give an orphan to an account."""
    vault = cloud.plane.reconciler.vault
    wish = Wish(email, **how)
    return await cloud.plane.store.write(adoption.adopt, vault, cloud.clock(), orphan, wish)


async def purge(cloud: Cloud, *names: str) -> list[str]:
    """Decide that these are to be removed."""
    return await cloud.plane.store.write(adoption.purge, cloud.clock(), names)


async def orphans(cloud: Cloud) -> dict[str, Orphan]:
    """Give the orphans as the store has them."""
    return {one.name: one for one in await cloud.plane.store.read(machines.all_orphans)}


async def offered(cloud: Cloud) -> list[str]:
    """List the types on offer."""
    return [one["type"] for one in (await cloud.call("GET", "/api/gpus")).json["gpus"]]


def deeds(connection: Connection) -> list[str]:
    """What was done, in the words of the audit?"""
    return list(connection.execute(select(audit.audit.c.did).order_by(audit.audit.c.id)).scalars())


def new_process(cloud: Cloud) -> None:
    """Let another process make the passes from now on, that remembers nothing."""
    cloud._watch = cloud.watch_of(cloud.plane.presence)
    cloud._watch.recall_seconds = 0.05


# What a pass keeps of them


async def test_what_an_orphan_was_made_from_is_asked_once_and_kept_sealed(cloud: Cloud) -> None:
    name = await orphan(cloud)
    await cloud.look()
    await cloud.look()

    found = (await orphans(cloud))[name]
    spec = cloud.driver.there[name].spec
    assert cloud.driver.calls["recall"] == 1
    assert found.spec is not None
    assert b"OPENSSH" not in found.spec
    assert adoption.open_spec(cloud.plane.reconciler.vault, found) == spec
    assert (found.cluster, found.gpus, found.port, found.purge) == ("fake", spec.gpus, spec.port, False)


@pytest.mark.parametrize("error", [DriverError("its disk is busy"), Unreachable("no route")], ids=str)
async def test_what_cannot_be_told_now_is_asked_again(cloud: Cloud, error: Exception) -> None:
    cloud.driver.faults = [Fault("recall", error, times=2)]
    name = await orphan(cloud)
    await cloud.look()
    assert (await orphans(cloud))[name].spec is None

    await cloud.look()

    assert (await orphans(cloud))[name].spec is not None
    assert cloud.driver.calls["recall"] == 3


class Forgetful(FakeDriver):
    """A cluster that does not keep what something was made from."""

    async def recall(self, name: str) -> Spec | None:
        """See `Driver`."""
        self.calls["recall"] += 1
        return None


async def test_what_can_never_be_told_is_not_adopted_but_can_be_purged(cloud: Cloud) -> None:
    there = cloud.driver.there
    cloud.driver = cloud.cluster.driver = Forgetful(cloud.driver.inventory, there=there)
    name = await orphan(cloud)

    with pytest.raises(BadRequest, match="not known yet what"):
        await adopt(cloud, name)

    await purge(cloud, name)
    await cloud.settle()
    assert there == {}


class Hanging(FakeDriver):
    """A cluster that never tells of some."""

    silent: frozenset[str] = frozenset()

    async def recall(self, name: str) -> Spec | None:
        """See `Driver`."""
        if name in self.silent:
            await asyncio.Event().wait()
        return await super().recall(name)


async def test_those_of_which_a_cluster_never_tells_keep_no_other_from_being_known(cloud: Cloud) -> None:
    """Eight are asked for at a time, and all eight hang: the ninth is the first of the next pass."""
    new_process(cloud)
    driver = Hanging(cloud.driver.inventory, there=cloud.driver.there)
    driver.silent = frozenset(f"vd-{number}" for number in range(8))
    cloud.driver = cloud.cluster.driver = driver
    for number in range(9):
        another(cloud, await orphan(cloud) if number == 0 else "vd-0", f"vd-{number}", port=20100 + number)
    await cloud.look()
    assert (await orphans(cloud))["vd-8"].spec is None

    await cloud.look()

    assert (await orphans(cloud))["vd-8"].spec is not None
    assert (await orphans(cloud))["vd-0"].spec is None


async def test_a_process_killed_while_it_asks_leaves_it_to_the_next(cloud: Cloud) -> None:
    cloud.driver.faults = [Fault("recall", delay=float("inf"))]
    looking = asyncio.create_task(orphan(cloud))
    await reach(cloud.driver, "recall")
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert [one.spec for one in (await orphans(cloud)).values()] == [None]

    new_process(cloud)
    await cloud.look()

    assert [one.spec is None for one in (await orphans(cloud)).values()] == [False]


# Purging


async def test_a_purged_orphan_is_removed_and_what_it_held_is_offered_again(cloud: Cloud) -> None:
    name = await orphan(cloud, kind="Titan V")
    assert await offered(cloud) == ["1080 ti"]

    assert await purge(cloud, name) == [name]
    await cloud.look()
    await cloud.look()

    assert cloud.driver.there == {}
    assert await orphans(cloud) == {}
    assert await offered(cloud) == ["1080 ti", "Titan V"]
    assert (await cloud.plane.store.read(deeds))[-1] == "purge"
    demand_order(cloud.plane.store, cloud.driver)


async def test_the_others_are_not_touched(cloud: Cloud) -> None:
    name, other = await orphan(cloud), await orphan(cloud)
    rented = (await cloud.rent(gpu="Titan V"))["key"]
    await cloud.settle()

    await purge(cloud, name)
    await cloud.settle()
    await cloud.settle()

    assert list(await orphans(cloud)) == [other]
    assert sorted(cloud.driver.there) == sorted([other, *await driver_names(cloud, rented)])


async def driver_names(cloud: Cloud, key: str) -> list[str]:
    """Under which names does an instance run?"""
    return [one.driver_name for one in await cloud.plane.store.read(attempts_of, key)]


async def test_a_purge_that_fails_is_tried_again_and_until_then_all_is_withheld(cloud: Cloud) -> None:
    name = await orphan(cloud, kind="Titan V")
    cloud.driver.faults = [Fault("remove", DriverError("busy"), times=2)]
    await purge(cloud, name)

    await cloud.look()
    await cloud.look()
    assert (await orphans(cloud))[name].purge
    assert await offered(cloud) == ["1080 ti"]
    await cloud.look()
    await cloud.look()

    assert await orphans(cloud) == {}
    assert cloud.driver.calls["remove"] == 3


async def test_a_purge_that_was_done_though_it_was_reported_as_failed_is_over(cloud: Cloud) -> None:
    name = await orphan(cloud)
    cloud.driver.faults = [Fault("remove", Unreachable("cut off"), after=True)]
    await purge(cloud, name)

    await cloud.look()
    await cloud.look()

    assert await orphans(cloud) == {}
    assert cloud.driver.calls["remove"] == 1


async def test_a_process_killed_while_it_purges_leaves_it_to_the_next(cloud: Cloud) -> None:
    name = await orphan(cloud)
    await purge(cloud, name)
    cloud.driver.faults = [Fault("remove", delay=float("inf"))]
    looking = asyncio.create_task(cloud.look())
    await reach(cloud.driver, "remove")
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking

    new_process(cloud)
    await cloud.look()
    await cloud.look()

    assert (await orphans(cloud), cloud.driver.there) == ({}, {})


async def test_to_decide_it_twice_changes_nothing(cloud: Cloud) -> None:
    name = await orphan(cloud)
    assert await purge(cloud, name, name) == [name]

    assert await purge(cloud, name) == []

    assert (await cloud.plane.store.read(deeds)).count("purge") == 1


async def test_what_is_to_be_removed_cannot_be_adopted(cloud: Cloud) -> None:
    """Its removal may be under way."""
    name = await orphan(cloud)
    await purge(cloud, name)

    with pytest.raises(BadRequest, match="is to be removed"):
        await adopt(cloud, name)


async def test_of_a_purge_and_an_adoption_at_once_one_wins(cloud: Cloud) -> None:
    name = await orphan(cloud)

    purged, adopted = await asyncio.gather(purge(cloud, name), adopt(cloud, name), return_exceptions=True)

    assert isinstance(purged, BadRequest) != isinstance(adopted, BadRequest), (purged, adopted)
    await cloud.settle()
    await cloud.settle()
    assert (name in cloud.driver.there) == isinstance(adopted, Adopted)


async def test_one_name_that_is_no_orphan_purges_none(cloud: Cloud) -> None:
    name = await orphan(cloud)

    with pytest.raises(BadRequest, match=r"There is no orphan vd-x\. .*vdserver instance orphans"):
        await purge(cloud, name, "vd-x")

    assert not (await orphans(cloud))[name].purge


async def test_an_orphan_that_vanishes_before_the_decision_is_none_any_more(cloud: Cloud) -> None:
    name = await orphan(cloud)
    cloud.driver.vanish(name)
    await cloud.look()

    for decide in (purge, adopt):
        with pytest.raises(BadRequest, match=f"There is no orphan {name}"):
            await decide(cloud, name)


async def test_an_instance_is_no_orphan_and_is_ended_otherwise(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    await cloud.settle()
    (name,) = await driver_names(cloud, key)

    for meant in (key, name, "one"):
        with pytest.raises(BadRequest, match=f"vdserver instance end {key}"):
            await purge(cloud, meant)
    await cloud.call("DELETE", f"/api/instances/{key}")
    await cloud.settle()
    for meant in (key, name):
        with pytest.raises(BadRequest, match=f"which has ended.* vdserver instance show {key}"):
            await purge(cloud, meant)


# Adopting


async def test_an_adopted_orphan_is_an_instance_as_it_was(cloud: Cloud) -> None:
    made = await cloud.rent("one", "Titan V")
    await cloud.settle()
    before = (await cloud.call("GET", f"/api/instances/{made['key']}/connection")).json["connection"]
    (name,) = await driver_names(cloud, made["key"])
    await restore(cloud, made["key"])
    await cloud.settle()
    was = cloud.driver.there[name]
    cloud.clock.move(hours=3)

    key = (await adopt(cloud, name)).key
    await cloud.settle()

    shown = await cloud.show(key)
    same = ("name", "ip", "port", "user", "physical_gpus", "cpu", "ram", "storage", "image", "hourly_price")
    assert {field: shown[field] for field in same} == {field: made[field] for field in same}
    assert key != made["key"]
    assert (shown["status"], shown["pem"], shown["error_occurred"]) == ("active", "", False)
    assert (shown["start_time"], shown["duration"]) == ("2026-03-01T15:00:00Z", 1)
    assert shown["guaranteed_availability"] == "unlimited"
    after = (await cloud.call("GET", f"/api/instances/{key}/connection")).json["connection"]
    assert after == before | {"pem": ""}
    assert (await cloud.call("GET", f"/api/instances/{key}/pem")).body == b""
    access = Access(after["ip"], after["port"], after["user"], after["ssh_host_key"], before["pem"])
    await cloud.driver.login(access)
    assert await cloud.events(key) == ["adopted"]
    assert (await cloud.plane.store.read(deeds))[-1] == "adopt"
    assert cloud.driver.there == {name: was}
    assert cloud.driver.calls["ensure"] == 1, "when it was rented"
    demand_order(cloud.plane.store, cloud.driver, adopted=[key])


async def test_it_is_no_orphan_any_more_and_its_gpu_is_as_good_as_any(cloud: Cloud) -> None:
    name = await orphan(cloud, kind="Titan V")
    await cloud.plane.store.write(machines.suspect, 3, "it burns")

    await adopt(cloud, name)
    await cloud.look()
    await cloud.look()

    assert await orphans(cloud) == {}
    card = await cloud.plane.store.read(gpu, 3)
    assert (card.free, card.suspect, card.suspect_why, card.failures) == (False, False, "", 0)
    assert await offered(cloud) == ["1080 ti"]


async def test_the_operator_says_what_it_is_called_what_it_costs_and_until_when(cloud: Cloud) -> None:
    name = await orphan(cloud)
    await cloud.new_renter("bob@example.org")
    until = NOON + timedelta(days=3)

    made = await adopt(cloud, name, "Bob@Example.org", name="found_again", price=Decimal("0.05"), until=until)

    row = await cloud.plane.store.read(row_of, made.key)
    assert (made.email, row.name, row.price, row.until) == (
        "bob@example.org",
        "found_again",
        Decimal("0.05"),
        until,
    )
    assert (await cloud.call("GET", f"/api/instances/{made.key}")).status == 404, "it is bob's"


async def test_it_is_charged_from_its_adoption_on(cloud: Cloud) -> None:
    name = await orphan(cloud)
    cloud.clock.move(hours=10)
    key = (await adopt(cloud, name)).key
    cloud.clock.move(hours=2, minutes=1)

    await cloud.call("DELETE", f"/api/instances/{key}")

    shown = await cloud.show(key)
    assert (shown["duration"], shown["estimated_charge"]) == (3, 1.92)


async def test_an_adopted_one_that_is_deleted_is_removed_and_all_is_free_again(cloud: Cloud) -> None:
    name = await orphan(cloud)
    key = (await adopt(cloud, name)).key
    await cloud.settle()

    assert (await cloud.call("DELETE", f"/api/instances/{key}")).status == 204
    await cloud.settle()

    assert await cloud.events(key) == ["adopted", "deleted", "released"]
    assert await cloud.plane.store.read(orphan_names) == []
    assert (await cloud.plane.store.read(gpu, 1)).free
    assert (await cloud.show(key))["pem"] == ""
    demand_order(cloud.plane.store, cloud.driver)


async def test_an_adopted_one_is_started_again_after_a_power_cut_as_it_was(cloud: Cloud) -> None:
    name = await orphan(cloud)
    spec = cloud.driver.there[name].spec
    key = (await adopt(cloud, name)).key
    await cloud.settle()

    cloud.driver.stop(name)
    new_process(cloud)
    cloud.cluster.asked = cloud.cluster.trusted = False
    await cloud.settle()

    assert cloud.driver.there[name] == FakeInstance(spec, running=True)
    assert await cloud.events(key) == ["adopted", "unseen", "recovered"]
    demand_order(cloud.plane.store, cloud.driver, adopted=[key])


async def test_one_that_lies_there_stopped_is_started_once_it_is_adopted(cloud: Cloud) -> None:
    name = await orphan(cloud)
    cloud.driver.stop(name)
    await cloud.look()
    assert list(await orphans(cloud)) == [name]

    key = (await adopt(cloud, name)).key
    await cloud.settle()

    assert cloud.driver.there[name].running
    assert (await cloud.show(key))["status"] == "active"


async def test_an_adopted_one_that_is_lost_ends_and_costs_nothing(cloud: Cloud) -> None:
    name = await orphan(cloud)
    key = (await adopt(cloud, name)).key
    await cloud.settle()

    cloud.driver.vanish(name)
    await cloud.settle()

    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"], shown["estimated_charge"]) == ("complete", True, 0)
    demand_order(cloud.plane.store, cloud.driver)


async def test_an_adopted_one_may_be_renamed_and_keeps_its_hostname(cloud: Cloud) -> None:
    key = (await adopt(cloud, await orphan(cloud))).key

    renamed = await cloud.call("PUT", f"/api/instances/{key}", {"name": "other"})

    assert (renamed.status, renamed.json["instance"]["pem"]) == (200, "")


async def test_the_limits_of_the_account_do_not_apply(cloud: Cloud) -> None:
    name = await orphan(cloud)
    token = await cloud.new_renter("bob@example.org")
    await cloud.plane.store.write(
        accounts.set_limits, cloud.clock(), "bob@example.org", {"gpus_at_once": 1, "hours_an_instance": 1}
    )
    wish = {"name": "own", "gpu": "Titan V"}
    assert (await cloud.call("POST", "/api/instances", wish, token=token)).status == 200

    made = await adopt(cloud, name, "bob@example.org")

    assert (await cloud.plane.store.read(row_of, made.key)).ends_at is None


# What cannot be adopted


async def test_an_account_that_is_not_there_is_to_be_made_first(cloud: Cloud) -> None:
    name = await orphan(cloud)

    with pytest.raises(BadRequest, match=r"vdserver user add eve@example\.org"):
        await adopt(cloud, name, "eve@example.org")

    assert list(await orphans(cloud)) == [name]


async def test_on_a_gpu_that_is_not_listed_its_price_is_to_be_said(cloud: Cloud) -> None:
    """As it is where the backup is from before the card was found: it would be given away."""
    name = await orphan(cloud)
    await cloud.change_listing(1, listed=False)

    with pytest.raises(BadRequest, match="--price DOLLARS"):
        await adopt(cloud, name)

    assert (await adopt(cloud, name, price=Decimal("0.5"))).price == Decimal("0.5")


async def test_of_two_on_one_gpu_the_second_is_refused(cloud: Cloud) -> None:
    name = await orphan(cloud)
    second = another(cloud, name, "vd-second", port=20777)
    await cloud.look()
    key = (await adopt(cloud, name)).key

    with pytest.raises(BadRequest, match=rf"GPU 1, .*held by {key} “one” of {ADA}.* instance end {key}"):
        await adopt(cloud, second)

    await cloud.call("DELETE", f"/api/instances/{key}")
    with pytest.raises(BadRequest, match=f"still held by {key} .*, which has ended"):
        await adopt(cloud, second)
    await cloud.settle()
    assert (await adopt(cloud, second)).gpu_id == 1


async def test_a_gpu_that_was_rented_out_again_is_refused(cloud: Cloud) -> None:
    """Its instance came up on it before the orphan was seen."""
    name = await orphan(cloud)
    there = cloud.driver.there.pop(name)
    await cloud.look()
    key = (await cloud.rent())["key"]
    await cloud.settle()
    cloud.driver.there[name] = there
    await cloud.look()

    with pytest.raises(BadRequest, match=f"is held by {key}"):
        await adopt(cloud, name)


async def test_a_port_that_another_has_is_refused(cloud: Cloud) -> None:
    name = await orphan(cloud)
    second = another(cloud, name, "vd-second", gpus=("GPU-m1-1",))
    await cloud.look()
    key = (await adopt(cloud, name)).key

    with pytest.raises(BadRequest, match=rf"Port 20000, at which .* held by {key}"):
        await adopt(cloud, second)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gpus": ("GPU-x",)}, "no such GPU there"),
        ({"machine": "m2"}, "no such GPU there"),
        ({"gpus": ()}, "holds 0 GPUs"),
        ({"gpus": ("GPU-m1-1", "GPU-m1-2")}, "holds 2 GPUs"),
        ({"host_key": ""}, "host key cannot be read"),
        ({"host_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nx"}, "host key cannot be read"),
        ({"authorized_keys": ()}, "nobody may log in"),
        ({"hostname": "a.b"}, "--name NAME"),
    ],
    ids=["unknown card", "another machine", "no card", "two cards", "no key", "bad key", "no login", "name"],
)
async def test_what_is_not_whole_is_refused_and_stays_as_it_is(
    cloud: Cloud, changes: dict[str, Any], why: str
) -> None:
    name = await orphan(cloud)
    spoilt = another(cloud, name, "vd-spoilt", **{"port": 20777, "gpus": ("GPU-m1-1",)} | changes)
    await cloud.look()

    with pytest.raises(BadRequest, match=why):
        await adopt(cloud, spoilt)

    assert sorted(await orphans(cloud)) == sorted([name, spoilt])
    assert await cloud.plane.store.read(attempts_of) == []


# While a pass is made


class Meanwhile(FakeDriver):
    """A cluster that lists its instances while something else happens: before it looks, or after."""

    before: Callable[[], Awaitable[object]]
    after: Callable[[], Awaitable[object]]

    async def instances(self) -> Sequence[SeenInstance]:
        """See `Driver`."""
        await self.before()
        listed = await super().instances()
        await self.after()
        return listed


async def nothing() -> None:
    """Happen."""


@dataclass
class Between:
    """A store in which something happens once a question was answered."""

    store: Store
    question: object
    then: Callable[[], Awaitable[object]]

    async def read(self, question: Any, *args: Any) -> Any:
        """See `Store`."""
        answer = await self.store.read(question, *args)
        if question is self.question:
            await self.then()
        return answer

    async def write(self, change: Any, *args: Any) -> Any:
        """See `Store`."""
        return await self.store.write(change, *args)


@pytest.mark.parametrize("moment", ["before the list", "after the list", "after it was judged"])
async def test_one_that_is_adopted_during_a_pass_is_neither_removed_nor_an_orphan(
    cloud: Cloud, moment: str
) -> None:
    name = await orphan(cloud)
    driver = Meanwhile(cloud.driver.inventory, there=cloud.driver.there)
    driver.before = driver.after = nothing
    cloud.driver = cloud.cluster.driver = driver

    async def take() -> None:
        driver.before = driver.after = nothing
        await adopt(cloud, name)

    if moment == "before the list":
        driver.before = take
    elif moment == "after the list":
        driver.after = take
    else:
        store: Any = Between(cloud.plane.store, sightings.known, take)
        cloud._watch.store = store

    await cloud.look()

    assert await orphans(cloud) == {}
    card = await cloud.plane.store.read(gpu, 1)
    assert (card.free, card.suspect) == (False, False)
    assert (name in driver.there, driver.calls["remove"]) == (True, 0)
    assert len(await cloud.plane.store.read(attempts_of)) == 1
