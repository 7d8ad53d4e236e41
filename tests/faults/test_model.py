"""Any story of renters, hosts, faults and restarts, against a model of what may become of it.

Hypothesis tells the stories. Each goes through the real application, reconciler and store, on each database;
the cluster is fake, and the clock is set by hand: the event loop goes by it, so that a call that hangs takes
no time. The model beside it (`Rented`, `Card`, `Orphan`) knows what was done and what a pass could see, never
what the store says; after each step everything that renters can see, and what is held, must agree with it.
At the end of a story all faults are over: what is wanted runs, and once it is deleted nothing is left.
"""

import asyncio
import dataclasses
import logging
import selectors
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, func, select

from cloud import NOON, Answer, Cloud, HandClock, open_cloud, work_on
from databases import Database, Kind
from sights import demand_order
from soaking import Soak
from vectordash.server import app
from vectordash.server.clock import UNLIMITED, as_written
from vectordash.server.db.base import metadata
from vectordash.server.db.presence import Presence, all_processes
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import (
    DriverError,
    SeenInstance,
    SeenMachine,
    Spec,
    StartFailed,
    Unreachable,
)
from vectordash.server.drivers.fake import Call, FakeDriver, FakeInstance, Fault, simple_machine
from vectordash.server.instances import leases
from vectordash.server.instances.tables import attempts, events, instances
from vectordash.server.machines import store as machines
from vectordash.server.machines.tables import gpus
from vectordash.server.reconciler.instance import Cluster
from vectordash.wire.errors import InternalError, Refusal

T = TypeVar("T")

EXAMPLES, STEPS = 30, 30
PORTS = (20000, 20006)
"""Few enough to be used again, and to run out."""
GRACE = timedelta(seconds=600)
HOUR = timedelta(hours=1)
CALLS: tuple[Call, ...] = ("ensure", "login", "remove", "instance", "instances", "machines", "identity")
NAMES = ("one", "two", "th_ree")
TYPES = ("1080 ti", "Titan V")
LIMITS = ("0.50", "0.64", "1.00")
KEYS = ("k1", "k2")
KEPT = {"users", "tokens", "facts", "gpu_types", "images", "key_pairs"}
"""Tables that a new story finds as the last one has left them."""
SPANS = (1, 5, 14, 40, 90, 400, 700, 1800, 3599, 3600, 3601, 4 * 3600, 25 * 3600)
"""Seconds."""


# --- time ------------------------------------------------------------------------------------------------


class HandLoop(asyncio.SelectorEventLoop):
    """An event loop that goes by the hand clock: when nothing is left but to wait, the clock moves on."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.busy = 0
        """Calls in other threads, which take no time."""
        super().__init__(_Patience(self))

    def time(self) -> float:
        """See `asyncio`."""
        return seconds_of(self.clock)

    def run_in_executor(self, *args: Any) -> Any:
        """See `asyncio`."""
        made = super().run_in_executor(*args)
        self.busy += 1
        made.add_done_callback(self._done)
        return made

    def _done(self, _: object) -> None:
        self.busy -= 1


class _Patience(selectors.DefaultSelector):
    def __init__(self, loop: HandLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if self._loop.busy and timeout != 0:
            return super().select(None)
        if timeout is None:
            ready = super().select(30)
            assert ready, "it waits for something that never happens"
            return ready
        ready = super().select(0)
        if not ready and timeout > 0:
            self._loop.clock.now += timedelta(microseconds=max(1, round(timeout * 1e6)))
        return ready


def seconds_of(clock: HandClock) -> float:
    """Tell the time in seconds."""
    return (clock.now - NOON).total_seconds()


# --- the cluster, and who dies ---------------------------------------------------------------------------


class Killed(BaseException):
    """The process is no more."""


@dataclass
class Fate:
    """After how many moments the process dies; 0: it does not."""

    left: int = 0

    def meet(self) -> None:
        """Live through a change of the store or the cluster, or not."""
        if self.left > 0:
            self.left -= 1
            if self.left == 0:
                raise Killed


@dataclass
class WatchedFake(FakeDriver):
    """A cluster that remembers what it listed last, and whose caller may die when a deed is done."""

    fate: Fate = field(default_factory=Fate)
    listed: set[str] | None = None
    """What ran, when a pass last got a list; None: it got none since this was last asked."""

    async def instances(self) -> Sequence[SeenInstance]:
        """See `Driver`."""
        found = await super().instances()
        self.listed = {one.name for one in found if one.state == "running"}
        return found

    async def ensure(self, spec: Spec) -> None:
        """See `Driver`."""
        await super().ensure(spec)
        self.fate.meet()

    async def remove(self, name: str) -> None:
        """See `Driver`."""
        await super().remove(name)
        self.fate.meet()


class MortalStore:
    """A store whose caller may die when a change is made, before it hears of it."""

    def __init__(self, store: Store, fate: Fate) -> None:
        self._store = store
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        """Give what the store has."""
        return getattr(self._store, name)

    async def write(self, *args: Any, **kwargs: Any) -> Any:
        """See `Store`."""
        result = await self._store.write(*args, **kwargs)
        self._fate.meet()
        return result


# --- the model -------------------------------------------------------------------------------------------


@dataclass
class Card:
    """A GPU, as its host offers it."""

    id: int
    uuid: str
    machine: str
    type: str
    price: Decimal
    until: datetime = UNLIMITED
    listed: bool = True
    reserved_until: datetime | None = None
    shown: bool = True
    """The last pass saw it on a machine that takes placements."""
    troubled: bool = False
    """Something failed on it, or it was held by an orphan: it need not be offered any more."""

    def offered(self, now: datetime, until: datetime) -> bool:
        """Whether its host would let it be rented now, until then."""
        reserved = self.reserved_until is not None and self.reserved_until > now
        return self.listed and not reserved and self.shown and self.until >= until


@dataclass
class Orphan:
    """Something on the cluster that the store has never heard of."""

    name: str
    uuid: str
    seen: bool = False
    """A pass has seen it."""


@dataclass
class Rented:
    """An instance, and what may be known of it."""

    key: str
    name: str
    type: str
    price: Decimal
    until: datetime
    rented_at: datetime
    status: str = "pending"
    active_at: datetime | None = None
    ended_at: datetime | None = None
    deleted: bool = False
    well: datetime | None = None
    """When it was last seen well, once active."""
    unseen: datetime | None = None
    """The same, while it is out of sight."""
    noticed: datetime | None = None
    """When that was noticed."""
    free: int = 0
    """Seconds out of sight that it came back from."""
    told: Counter[str] = field(default_factory=Counter)
    """Kinds of events so far."""
    starts_failed: int = 0
    """Since it was last well."""
    renames: int = 0
    card: int = 0
    """The GPU of its attempt."""
    fixed: tuple[object, ...] | None = None
    """What never changes any more, once active."""
    final: dict[str, Any] | None = None
    """As it was shown when it had ended."""

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None

    @property
    def failed(self) -> bool:
        """Whether it ended by a fault."""
        return not self.live and not self.deleted

    def use(self, now: datetime) -> tuple[int, Decimal]:
        """Tell the hours and dollars that it comes to, by what was seen of it."""
        if self.active_at is None:
            return (1, self.price) if self.live else (0, Decimal(0))
        end = min(moment for moment in (now, self.ended_at, self.unseen) if moment is not None)
        seconds = max(0, int((end - self.active_at).total_seconds()) - self.free)
        hours = seconds // 3600 if self.failed else max(1, (seconds + 3599) // 3600)
        return hours, self.price * hours


@dataclass
class Promise:
    """What an `Idempotency-Key` stands for."""

    body: dict[str, str]
    rented: Rented
    at: datetime

    def kept(self, now: datetime) -> bool:
        """Whether it still stands."""
        return now - self.at < timedelta(hours=24)


@dataclass
class Model:
    """All that was done, and what follows from it."""

    cards: list[Card] = field(default_factory=list)
    rented: list[Rented] = field(default_factory=list)
    """In the order of their requests."""
    promises: dict[str, Promise] = field(default_factory=dict)
    orphans: list[Orphan] = field(default_factory=list)
    answered: bool = True
    """The last pass was."""
    last_event: int = 0

    def card(self, gpu_id: int) -> Card:
        """Find a GPU."""
        return next(card for card in self.cards if card.id == gpu_id)

    def find(self, key: str) -> Rented:
        """Find an instance."""
        return next(one for one in self.rented if one.key == key)

    def named(self, name: str) -> list[Rented]:
        """Find the live ones of this name."""
        return [one for one in self.rented if one.live and one.name == name]

    def held_by_orphans(self) -> set[str]:
        """Which cards hold something unknown that a pass has seen?"""
        return {orphan.uuid for orphan in self.orphans if orphan.seen}


# --- what the store says ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """An attempt."""

    instance: str
    number: int
    gpu_id: int
    machine_id: int
    driver_name: str
    bound_address: str
    port: int
    failed_at: datetime | None
    released_at: datetime | None


@dataclass(frozen=True)
class Books:
    """Everything that stands in the store."""

    instances: dict[str, Any]
    attempts: list[Held]
    free: dict[int, bool]
    told: dict[str, Counter[str]]

    @property
    def held(self) -> list[Held]:
        """The attempts that are not released."""
        return [one for one in self.attempts if one.released_at is None]

    def current(self, key: str) -> Held:
        """The attempt that an instance stands on."""
        number = self.instances[key].attempt
        return next(one for one in self.attempts if (one.instance, one.number) == (key, number))

    def of(self, key: str) -> list[Held]:
        """All attempts of an instance."""
        return [one for one in self.attempts if one.instance == key]


def books(connection: Connection) -> Books:
    """What stands in the store?"""
    columns = [attempts.c[name] for name in Held.__dataclass_fields__]
    told: dict[str, Counter[str]] = {}
    counted = select(events.c.instance, events.c.kind, func.count()).group_by(
        events.c.instance, events.c.kind
    )
    for key, kind, count in connection.execute(counted):
        told.setdefault(key, Counter())[kind] = count
    return Books(
        {row.key: row for row in connection.execute(select(instances))},
        [Held(*row) for row in connection.execute(select(*columns).order_by(attempts.c.number))],
        dict(iter(connection.execute(select(gpus.c.id, gpus.c.free)))),
        told,
    )


def events_after(connection: Connection, last: int) -> list[Any]:
    """What has happened since then? Each with its instance and its attempt as they are now."""
    query = select(events).where(events.c.id > last).order_by(events.c.id)
    return list(connection.execute(query))


def empty(connection: Connection) -> None:
    """Forget the last story."""
    for table in reversed(metadata.sorted_tables):
        if table.name not in KEPT:
            connection.execute(table.delete())


# --- the world -------------------------------------------------------------------------------------------


@dataclass
class World:
    """What all stories of one test share: a store, and a renter's token. Only their contents change."""

    first: Cloud
    clock: HandClock
    kind: Kind

    def begin(self) -> "tuple[Cloud, WatchedFake]":
        """Make an empty cloud on the same store."""
        self.clock.now = NOON
        plane = self.first.plane
        plane.store.change(empty)
        driver = WatchedFake(inventory())
        with asyncio.Runner(loop_factory=lambda: HandLoop(self.clock)) as runner:
            cluster = runner.run(app.join(plane.store, self.clock, "fake", driver, PORTS))
            cloud = renew(self.first, cluster=cluster, driver=driver)
            runner.run(cloud.list_gpus())
            runner.run(cloud.stock_keys(STEPS))
            runner.run(cloud.look())
        return cloud, driver


def inventory() -> list[SeenMachine]:
    """Describe two machines: one with two 1080 ti and a Titan V, the other with a 1080 ti."""
    one = simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 2, "NVIDIA TITAN V", vram=12)
    other = simple_machine("m2", "NVIDIA GeForce GTX 1080 Ti")
    return [one, dataclasses.replace(other, address="127.0.0.2")]


def renew(
    cloud: Cloud,
    *,
    cluster: Cluster | None = None,
    driver: FakeDriver | None = None,
    presence: Presence | None = None,
    api: bool = True,
) -> Cloud:
    """Make a cloud of new objects on the same store: the processes begin anew."""
    plane, joined = cloud.plane, cluster or cloud.cluster
    if presence is None:
        presence = Presence(plane.store, cloud.clock, "up", watch=lambda: seconds_of(cloud.clock))
        presence.enter()
    if api:
        made = app.build(plane.settings, plane.store, plane.reconciler.vault, [joined], cloud.clock, presence)
    else:
        made = dataclasses.replace(plane, presence=presence)
    return Cloud(made, driver or cloud.driver, joined, cloud.clock, cloud.token)


class Mishaps(logging.Handler):
    """Errors that nobody foresaw: each was logged with its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Remember it."""
        if record.exc_info:
            self.seen.append(logging.Formatter().format(record))


def documented() -> set[str]:
    """Every reason of a refusal, but the one that nobody foresaw."""
    found, left = set(), [Refusal]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        found.add(getattr(kind, "reason", ""))
    return found - {"", InternalError.reason}


DOCUMENTED = documented()


# --- the story -------------------------------------------------------------------------------------------


def faults(calls: Sequence[Call] = CALLS) -> st.SearchStrategy[Fault]:
    """Draw something that goes wrong."""
    errors = {
        "ensure": (
            StartFailed("it does not start"),
            StartFailed("not now", transient=True),
            Unreachable("no answer"),
        ),
        "login": (
            StartFailed("it lets nobody in"),
            StartFailed("not now", transient=True),
            Unreachable("no answer"),
        ),
        "remove": (DriverError("it refuses"), Unreachable("no answer")),
        **dict.fromkeys(("instance", "instances", "machines", "identity"), (Unreachable("no answer"),)),
    }

    def of(call: Call) -> st.SearchStrategy[Fault]:
        return st.one_of(
            st.builds(
                Fault,
                st.just(call),
                st.sampled_from(errors[call]),
                after=st.booleans() if call in {"ensure", "remove"} else st.just(value=False),
                times=st.integers(1, 4),
            ),
            st.builds(
                Fault,
                st.just(call),
                delay=st.sampled_from((3.0, 20.0, float("inf"))),
                times=st.integers(1, 2),
            ),
        )

    return st.sampled_from(calls).flatmap(of)


INDEX = st.integers(0, 99)
"""Which of those there are."""


class Story(RuleBasedStateMachine):
    """One story."""

    def __init__(self, world: World, mishaps: Mishaps) -> None:
        super().__init__()
        self.clock = world.clock
        self.mishaps = mishaps
        mishaps.seen.clear()
        self.cloud, self.driver = world.begin()
        self.store = self.cloud.plane.store
        self.runner = asyncio.Runner(loop_factory=lambda: HandLoop(self.clock))
        self.model = Model()
        self.whole = True
        """Nothing has failed so far."""
        self.steps = 0
        self.began = self.clock.now
        self.number = 0
        self.was_there: set[str] = set()
        """What the cluster had before the last work on an instance."""
        self.listed: dict[str, Any] = {}
        """What the API listed last, by key."""
        self._learn_cards()

    def _learn_cards(self) -> None:
        machine_of = {card.uuid: one.name for one in self.driver.inventory for card in one.gpus}
        query = select(gpus.c.id, gpus.c.uuid, gpus.c.type).order_by(gpus.c.id)
        for gpu_id, uuid, type_ in self.store.ask(lambda connection: list(connection.execute(query))):
            price = Decimal(LIMITS[len(self.model.cards) % len(LIMITS)])
            self.model.cards.append(Card(gpu_id, uuid, machine_of[uuid], type_, price))
            self.store.change(machines.change_listing, [gpu_id], {"price": price})

    def run(self, deed: Coroutine[Any, Any, T]) -> T:
        """Do something on the event loop."""
        try:
            return self.runner.run(deed)
        except BaseException:
            self.whole = False
            raise

    @initialize(gpus=st.lists(st.sampled_from(TYPES), min_size=1, max_size=3), name=st.sampled_from(NAMES))
    def begin(self, gpus: list[str], name: str) -> None:
        """Begin with a few instances, so that there is something to lose."""
        for gpu, key in zip(gpus, (*KEYS, None), strict=False):
            self.run(self._rent({"name": name, "gpu": gpu}, None, key))
        self.run(self._settle())

    # --- renters -------------------------------------------------------------------------------------

    @rule(
        gpu=st.sampled_from(TYPES),
        name=st.sampled_from(NAMES),
        hours=st.sampled_from((None, 2, 30)),
        limit=st.sampled_from((None, *LIMITS)),
        key=st.sampled_from((None, *KEYS)),
    )
    def rent(self, gpu: str, name: str, hours: int | None, limit: str | None, key: str | None) -> None:
        """Ask for a GPU, in all ways."""
        body = {"name": name, "gpu": gpu}
        if hours is not None:
            body["date"] = as_written(self.clock.now + timedelta(hours=hours))
        self.run(self._rent(body, limit, key))

    @rule(
        gpu=st.sampled_from(TYPES),
        name=st.sampled_from(NAMES),
        amid=st.lists(faults(("ensure", "login")), max_size=3),
        patient=st.booleans(),
    )
    def rent_and_wait(self, gpu: str, name: str, amid: list[Fault], patient: bool) -> None:
        """Ask for a GPU, and wait, whatever goes wrong."""
        self.driver.faults[:0] = [dataclasses.replace(fault) for fault in amid]
        self.run(self._rent({"name": name, "gpu": gpu}, None, None))
        self.run(self._settle())
        if patient:
            self.run(self._be_patient())

    @precondition(lambda self: self.model.promises)
    @rule(which=INDEX, same=st.booleans(), hours=st.sampled_from((0, 0, 23, 24, 25)))
    def replay(self, which: int, same: bool, hours: int) -> None:
        """Send a request again, or another one with its key; at once, or when the key may have run out."""
        self.run(self._pass_time(hours * 3600))
        key = self._pick(sorted(self.model.promises), which)
        body = self.model.promises[key].body
        self.run(self._rent(body if same else body | {"name": "other"}, None, key))

    @precondition(lambda self: self.model.rented)
    @rule(which=INDEX, name=st.sampled_from(NAMES))
    def rename(self, which: int, name: str) -> None:
        """Give an instance another name."""
        one = self._pick(self.model.rented, which)
        answer = self.run(self._call("PUT", f"/api/instances/{one.key}", {"name": name}))
        if not one.live:
            self._demand_refusal(answer, 410, "instance_gone")
            return
        assert answer.status == 200
        one.name, one.renames = name, one.renames + 1

    @precondition(lambda self: self.model.rented)
    @rule(which=INDEX, by_name=st.booleans())
    def delete(self, which: int, by_name: bool) -> None:
        """End an instance; a second time, nothing happens."""
        one = self._pick(self.model.rented, which)
        by_name = by_name and self.model.named(one.name) == [one]
        path = f"/api/instances/{one.name if by_name else one.key}"
        answer = self.run(self._call("DELETE", path))
        if one.live:
            assert answer.status == 204
            one.deleted, one.ended_at = True, self.clock.now
            self.run(self._observe())
            answer = self.run(self._call("DELETE", f"/api/instances/{one.key}"))
        self._demand_refusal(answer, 410, "instance_gone")

    async def _rent(self, body: dict[str, str], limit: str | None, key: str | None) -> None:
        headers = {"Idempotency-Key": key, "Vectordash-Max-Price": limit}
        promise = self.model.promises.get(key or "")
        if promise is not None and promise.kept(self.clock.now):
            await self._demand_replay(body, promise, headers)
            return
        offer = await self._offer(body)
        answer = await self._post(body, headers)
        past = "date" in body and _date(body["date"]) <= self.clock.now
        if past:
            self._demand_refusal(answer, 400, "invalid_field")
        elif answer.status == 200:
            one = self._take(body, answer.json["instance"])
            assert limit is None or one.price <= Decimal(limit)
            assert offer is None or (one.price, as_written(one.until)) == offer
            if key is not None:
                self.model.promises[key] = Promise(body, one, self.clock.now)
            await self._observe()
        else:
            await self._demand_excuse(answer, body, limit)

    async def _post(self, body: dict[str, str], headers: dict[str, str | None]) -> Answer:
        given = {name: value for name, value in headers.items() if value is not None}
        return await self._call("POST", "/api/instances", body, headers=given)

    async def _offer(self, body: dict[str, str]) -> tuple[Decimal, str] | None:
        """What does the list show that is to be had without a date? Price and availability."""
        rows = (await self._call("GET", "/api/gpus")).json["gpus"]
        row = next((row for row in rows if row["type"] == body["gpu"]), None)
        if "date" in body or row is None:
            return None
        return _money(row["hourly_price"]), row["max_availability"]

    async def _demand_replay(
        self, body: dict[str, str], promise: Promise, headers: dict[str, str | None]
    ) -> None:
        answer = await self._post(body, headers)
        if body != promise.body:
            self._demand_refusal(answer, 400, "idempotency_key_reused")
            return
        assert answer.status == 200
        assert answer.headers["idempotent-replayed"] == "true"
        assert answer.json["instance"] == await self.cloud.show(promise.rented.key)
        assert answer.json["instance"]["key"] == promise.rented.key

    def _take(self, body: dict[str, str], shown: Any) -> Rented:
        """Learn of a new instance."""
        now = self.clock.now
        price, until = _money(shown["hourly_price"]), _until(shown["guaranteed_availability"])
        one = Rented(shown["key"], body["name"], body["gpu"], price, until, now)
        one.card = shown["physical_gpus"][0]["id"]
        self.model.rented.append(one)
        card = self.model.card(one.card)
        promised = card.until.replace(microsecond=0)  # as it is written
        assert (card.type, card.price, promised) == (one.type, price, until)
        at_least = max(now + HOUR, _date(body["date"])) if "date" in body else now + HOUR
        assert card.offered(now, at_least)
        assert card.uuid not in self.model.held_by_orphans()
        better = [each.price for each in self._surely_free(one.type, at_least) if each is not card]
        assert "date" not in body or not better or price <= min(better)
        return one

    async def _demand_excuse(self, answer: Answer, body: dict[str, str], limit: str | None) -> None:
        """A refusal to rent must have its reason."""
        now = self.clock.now
        until = max(now + HOUR, _date(body["date"])) if "date" in body else now + HOUR
        surely = self._surely_free(body["gpu"], until)
        match answer.error["reason"]:
            case "gpu_unavailable":
                assert answer.status == 504
                assert not surely
            case "offer_changed":
                assert answer.status == 504
                assert limit is not None
                assert not [card for card in surely if card.price <= Decimal(limit)] or "date" not in body
            case "ports_exhausted":
                assert answer.status == 503
                self._demand_ports_held()
            case reason:
                raise AssertionError(f"refused to rent: {reason}")

    def _demand_ports_held(self) -> None:
        """Most ports are held by somebody on some machine."""
        held = Counter(one.machine_id for one in self.store.ask(books).held)
        most = max(held.values(), default=0) + len(self.model.orphans)
        assert most >= PORTS[1] - PORTS[0] + 1

    def _surely_free(self, type_: str, until: datetime) -> list[Card]:
        """Which cards must be on offer, whatever else is?"""
        if not self.model.answered:
            return []
        held = {one.gpu_id for one in self.store.ask(books).held}
        return [
            card
            for card in self.model.cards
            if card.type == type_ and not card.troubled and card.id not in held
            if card.offered(self.clock.now, until)
        ]

    # --- hosts ---------------------------------------------------------------------------------------

    @rule(
        which=INDEX,
        change=st.one_of(
            st.tuples(st.just("price"), st.sampled_from([Decimal(price) for price in LIMITS])),
            st.tuples(st.just("listed"), st.booleans()),
            st.tuples(st.just("until"), st.sampled_from((3, 30, None))),
            st.tuples(st.just("reserved_until"), st.sampled_from((2, None))),
        ),
    )
    def host_changes(self, which: int, change: tuple[str, Any]) -> None:
        """Change what a host offers, whoever has it."""
        card, (name, value) = self._pick(self.model.cards, which), change
        if name in {"until", "reserved_until"}:
            never = UNLIMITED if name == "until" else None
            value = never if value is None else self.clock.now + timedelta(hours=value)
        setattr(card, name, value)
        column = "available_until" if name == "until" else name
        self.run(self.cloud.change_listing(card.id, **{column: value}))

    @rule(which=INDEX, online=st.booleans(), of=st.one_of(st.none(), INDEX))
    def change_inventory(self, which: int, online: bool, of: int | None) -> None:
        """Drain a machine, or unplug a card of it; or let either be there again."""
        at = which % len(self.driver.inventory)
        now, whole = self.driver.inventory[at], inventory()[at]
        if of is None:
            self.driver.inventory[at] = dataclasses.replace(now, online=online)
            return
        card = self._pick(whole.gpus, of)
        kept = {each.uuid for each in now.gpus} - {card.uuid} | ({card.uuid} if online else set())
        cards = tuple(each for each in whole.gpus if each.uuid in kept)
        self.driver.inventory[at] = dataclasses.replace(now, gpus=cards)

    # --- faults --------------------------------------------------------------------------------------

    @rule(fault=st.one_of(st.none(), faults()), of=st.one_of(st.none(), INDEX))
    def go_wrong(self, fault: Fault | None, of: int | None) -> None:
        """Let calls go wrong, of one card or of any; or, for a change, no more of them."""
        if fault is None:
            self.driver.faults.clear()
            return
        order = dataclasses.replace(fault)
        if of is not None and fault.call in {"ensure", "login", "remove"}:
            order.gpu = self._pick(self.model.cards, of).uuid
        self.driver.faults.append(order)

    @rule(ports=st.sets(st.integers(*PORTS), max_size=4))
    def use_ports(self, ports: set[int]) -> None:
        """Let another program listen on some ports."""
        self.driver.busy_ports = ports

    @precondition(lambda self: self._own())
    @rule(which=INDEX, how=st.sampled_from(("vanish", "stop", "hide", "cut off")))
    def lose(self, which: int, how: str) -> None:
        """Let an instance vanish, stop, or be left out of a list; or the whole cluster not answer."""
        name = self._pick(self._own(), which)
        match how:
            case "vanish":
                self.driver.vanish(name)
            case "stop":
                self.driver.stop(name)
            case "hide":
                self.driver.hidden.add(name)
            case _:
                self.driver.reachable = False

    @precondition(lambda self: self._own())
    @rule(
        which=INDEX,
        how=st.sampled_from(("stop", "stop", "vanish", "cut off")),
        seconds=st.sampled_from(SPANS),
        tried=st.booleans(),
        back=st.sampled_from((True, True, False)),
    )
    def suffer(self, which: int, how: str, seconds: int, tried: bool, back: bool) -> None:
        """Let something be lost for a while, long enough for a pass to notice."""
        self.run(self._look())
        if not self._own():
            return
        self.lose(which, how)
        if how == "cut off":
            self.run(self._pass_time(40))
        self.run(self._look())
        if tried:
            self.run(self._work())
        self.run(self._pass_time(seconds))
        self.check()
        if back:
            self.come_back()
        self.run(self._settle())

    @rule()
    def come_back(self) -> None:
        """Let what vanished, was left out or did not answer be there again."""
        self.driver.reachable = True
        self.driver.hidden.clear()
        for name in list(self.driver.vanished):
            self.driver.come_back(name)

    @rule(which=INDEX, port=st.integers(*PORTS))
    def leave_orphan(self, which: int, port: int) -> None:
        """Let something run that the store has never heard of."""
        card = self._pick(self.model.cards, which)
        self.number += 1
        orphan = Orphan(f"vd-orphan-{self.number}", card.uuid)
        spec = _orphan_spec(orphan, card, port)
        if not self.driver._listening(spec.address, spec.port):
            self.driver._bound[spec.address, spec.port].add(orphan.name)
            self.driver._run(FakeInstance(spec))
            self.model.orphans.append(orphan)
            card.troubled = True

    @precondition(lambda self: self.model.orphans)
    @rule(which=INDEX)
    def take_orphan(self, which: int) -> None:
        """Let it be gone."""
        orphan = self._pick(self.model.orphans, which)
        self.model.orphans.remove(orphan)
        del self.driver.there[orphan.name]

    # --- time, and the reconciler --------------------------------------------------------------------

    @rule(seconds=st.sampled_from(SPANS), watched=st.booleans())
    def wait(self, seconds: int, watched: bool) -> None:
        """Let time pass, with a few passes in it or without any."""
        for part in (seconds - seconds // 2, seconds // 2) if watched else (seconds,):
            self.run(self._pass_time(part))
            if watched:
                self.run(self._look())

    async def _pass_time(self, seconds: int) -> None:
        if seconds > 6:
            await self._bury()
        self.clock.move(seconds=seconds)

    @rule(how=st.sampled_from(("look", "work", "settle", "be patient")))
    def reconcile(self, how: str) -> None:
        """Make a pass, or work on everybody who is due; or both until it rests, perhaps for longer."""
        match how:
            case "look":
                self.run(self._look())
            case "work":
                self.run(self._work())
            case "settle":
                self.run(self._settle())
            case _:
                self.run(self._be_patient())

    @rule(api=st.booleans(), reconciler=st.booleans(), buried=st.booleans())
    def restart(self, api: bool, reconciler: bool, buried: bool) -> None:
        """Begin a process anew, the dead one's end noticed at once, or not yet."""
        if reconciler:
            self._begin_anew(api=api)
            if buried:
                self.run(self._bury())
        elif api:
            self.cloud = renew(self.cloud, presence=self.cloud.plane.presence)

    @rule(moments=st.integers(1, 6), at_pass=st.booleans(), stuck=st.booleans())
    def die(self, moments: int, at_pass: bool, stuck: bool) -> None:
        """Die in the middle of work; or be stuck there, while the process goes on."""
        fate = self.driver.fate
        fate.left = moments
        mortal: Any = MortalStore(self.store, fate)
        watch = self.cloud._watch
        watch.store = mortal
        died = False
        try:
            self.runner.run(self._look() if at_pass else self._work(mortal))
        except Killed:
            died = True
        finally:
            fate.left, watch.store = 0, self.store
        self.run(self._observe())
        if died and (at_pass or not stuck):
            self._begin_anew()

    def _begin_anew(self, *, api: bool = False) -> None:
        old = self.cloud.cluster
        self.cloud = renew(self.cloud, cluster=Cluster(old.id, old.name, old.identity, self.driver), api=api)

    async def _bury(self) -> None:
        """Let the processes notice that others are dead."""
        presence = self.cloud.plane.presence
        if self.store.shared and len(await self.store.read(all_processes)) > 1:
            for _ in range(4):
                await presence.look()
                self.clock.move(seconds=2)

    async def _look(self) -> None:
        self.driver.listed, began = None, self.clock.now
        try:
            await self.cloud.look()
        finally:
            await self._observe()
            self._note_pass(began)

    def _note_pass(self, began: datetime) -> None:
        """Learn what a pass could see."""
        running = self.driver.listed
        self.model.answered = running is not None
        if running is None:
            return
        for orphan in self.model.orphans:
            orphan.seen = orphan.seen or orphan.name in running
        shown = {card.uuid for one in self.driver.inventory if one.online for card in one.gpus}
        for card in self.model.cards:
            card.shown = card.uuid in shown
        if not any(one.online for one in self.driver.inventory):
            return  # nothing was seen well
        for one in self.model.rented:
            if one.live and one.well is not None and one.unseen is None:
                one.well = max(one.well, began)

    async def _work(self, store: Any = None) -> bool:
        """Let everybody be worked on who is due; False if nobody was."""
        due = await self.store.read(leases.due, self.clock.now, 1000)
        for key in due:
            self.was_there = set(self.driver.there)
            try:
                await work_on(self.cloud.around(store), key)
            finally:
                await self._observe()
        return bool(due)

    async def _settle(self) -> None:
        for _ in range(40):
            await self._look()
            if not await self._work() or self.driver.hidden:  # whom a list leaves out, each pass looks for
                return
        raise AssertionError("the reconciler does not come to rest")

    async def _be_patient(self) -> None:
        """Let time pass until something is due again, a few times."""
        for _ in range(4):
            await self._settle()
            due = await self.store.read(leases.next_due)
            if due is None:
                return
            self.clock.now = max(self.clock.now, due)
        await self._settle()

    # --- what happened -------------------------------------------------------------------------------

    async def _observe(self) -> None:
        """Learn what has happened just now; it must have been right."""
        new = await self.store.read(events_after, self.model.last_event)
        if not new:
            return
        found = await self.store.read(books)
        for event in new:
            self.model.last_event = event.id
            one = self.model.find(event.instance)
            one.told[event.kind] += 1
            self._happen(one, event, found)

    def _happen(self, one: Rented, event: Any, found: Books) -> None:
        assert event.time == event.time.astimezone(UTC) <= self.clock.now
        held = next((held for held in found.of(one.key) if held.number == event.attempt), None)
        match event.kind:
            case "rented" | "renamed" | "port_moved" | "deleted":
                pass
            case "active":
                assert one.live
                one.status, one.active_at, one.well = "active", event.time, event.time
            case "placed":
                self._placed(one, held, found)
            case "start_failed":
                assert held is not None
                assert one.active_at is None
                self.model.card(held.gpu_id).troubled = True
            case "unseen":
                one.unseen, one.noticed = one.well, event.time
            case "recovered":
                self._recovered(one, event, found)
            case "restart_failed":
                one.starts_failed += 1
            case "released":
                assert held is not None
                assert held.driver_name not in self.driver.there
            case "ended":
                self._ended(one, event, found)
            case _:
                raise AssertionError(f"what is {event.kind}?")

    def _placed(self, one: Rented, held: Held | None, found: Books) -> None:
        """Another attempt: on a card that is offered, or once more on the same; never dearer."""
        assert held is not None
        assert held.number <= 3
        assert one.active_at is None
        last = next(each for each in found.of(one.key) if each.number == held.number - 1)
        assert last.failed_at is not None
        if held.gpu_id != last.gpu_id:
            card = self.model.card(held.gpu_id)
            assert card.type == one.type
            assert card.offered(self.clock.now, one.until)
            assert card.uuid not in self.model.held_by_orphans()
            one.price = min(one.price, card.price)
        one.card = held.gpu_id

    def _recovered(self, one: Rented, event: Any, found: Books) -> None:
        there = self.driver.there.get(found.current(one.key).driver_name)
        assert one.active_at is not None
        assert there is not None
        assert there.running
        if one.unseen is not None:
            one.free += max(0, int((event.time - one.unseen).total_seconds()))
        one.unseen, one.noticed, one.well, one.starts_failed = None, None, event.time, 0

    def _ended(self, one: Rented, event: Any, found: Books) -> None:
        """It ended by itself: it must have had to, and when it was last seen well."""
        row, held = found.instances[one.key], found.current(one.key)
        assert one.live
        one.ended_at = row.ended_at
        self.model.card(one.card).troubled = True
        if one.active_at is None:
            assert row.end_reason == "not_started"
            assert one.told["start_failed"]
            others = [
                card for card in self._surely_free(one.type, one.until) if card.id not in _tried(found, one)
            ]
            assert held.number == 3 or not others or "port" in event.message
            return
        assert row.end_reason == "lost"
        assert one.well is not None
        assert one.active_at <= row.ended_at <= one.well
        gone = held.driver_name not in self.was_there
        over = one.noticed is not None and event.time >= one.noticed + GRACE
        assert gone or over or one.starts_failed >= 3

    # --- what must hold after each step --------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        """Compare everything with the model."""
        self.steps += 1
        whole, self.whole = self.whole, False
        found = self.run(self._checked())
        self._demand_no_double_sale(found)
        self._demand_known_runs(found)
        assert not self.mishaps.seen, self.mishaps.seen[0]
        self.whole = whole

    async def _checked(self) -> Books:
        await self._observe()
        found = await self.store.read(books)
        await self._demand_shown(found)
        await self._demand_names()
        await self._demand_connection()
        for one in self.model.rented:
            self._demand_events(one, found)
        return found

    def _demand_no_double_sale(self, found: Books) -> None:
        held = found.held
        assert len({one.gpu_id for one in held}) == len(held)
        assert len({(one.machine_id, one.bound_address, one.port) for one in held}) == len(held)
        assert {gpu_id for gpu_id, free in found.free.items() if not free} == {one.gpu_id for one in held}
        claims: Counter[object] = Counter()
        for one in held:
            there = self.driver.there.get(one.driver_name)
            if there is not None and there.running:
                claims.update([*there.spec.gpus, (there.spec.machine, there.spec.port)])
        assert all(count == 1 for count in claims.values()), claims

    def _demand_known_runs(self, found: Books) -> None:
        """Orphans are left alone, and so is everybody who is active."""
        for orphan in self.model.orphans:
            assert orphan.name in self.driver.there
        for one in self.model.rented:
            if one.status == "active" and one.live:
                held = found.current(one.key)
                assert held.released_at is None
                assert held.driver_name in self.driver.there or held.driver_name in self.driver.vanished

    async def _demand_shown(self, found: Books) -> None:
        """The list shows who is live, newest first, and each is as it must be."""
        listed = (await self._call("GET", "/api/instances")).json["instances"]
        live = [one for one in self.model.rented if one.live]
        assert {shown["key"] for shown in listed} == {one.key for one in live}
        began = [self.model.find(shown["key"]).rented_at for shown in listed]
        assert began == sorted(began, reverse=True)
        for shown in listed:
            self._demand_live(self.model.find(shown["key"]), shown, found)
        self.listed = {shown["key"]: shown for shown in listed}
        for number, one in enumerate(self.model.rented):
            if not one.live and (one.final is None or self.steps % 7 == number % 7):
                shown = (await self._call("GET", f"/api/instances/{one.key}")).json["instance"]
                self._demand_ended(one, shown, found)

    def _demand_live(self, one: Rented, shown: dict[str, Any], found: Books) -> None:
        self._demand_alike(one, shown)
        held = found.current(one.key)
        assert shown["status"] == one.status
        assert shown["end_time"] is None
        assert not shown["error_occurred"]
        assert shown["pem"].startswith("-----BEGIN RSA PRIVATE KEY-----\n")
        assert (shown["port"], shown["physical_gpus"][0]["id"]) == (held.port, held.gpu_id)
        there = self.driver.there.get(held.driver_name)
        if one.status == "active":
            fixed = tuple(
                str(shown[name]) for name in ("ip", "port", "physical_gpus", "cpu", "ram", "storage")
            )
            assert one.fixed in (None, fixed)
            one.fixed = fixed
            assert there is None or (there.spec.address, there.spec.port) == (shown["ip"], shown["port"])

    def _demand_ended(self, one: Rented, shown: dict[str, Any], found: Books) -> None:
        self._demand_alike(one, shown)
        assert one.ended_at is not None
        assert shown["status"] == "complete"
        assert shown["error_occurred"] == one.failed
        assert shown["end_time"] == one.ended_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        gone = all(held.released_at is not None for held in found.of(one.key))
        assert (shown["pem"] == "") == gone
        if one.fixed is not None:
            assert one.fixed == tuple(
                str(shown[name]) for name in ("ip", "port", "physical_gpus", "cpu", "ram", "storage")
            )
        final = {name: value for name, value in shown.items() if name != "pem"}
        assert one.final in (None, final)
        one.final = final

    def _demand_alike(self, one: Rented, shown: dict[str, Any]) -> None:
        """What an instance shows, live or not."""
        hours, dollars = one.use(self.clock.now)
        assert (shown["key"], shown["name"]) == (one.key, one.name)
        assert _money(shown["hourly_price"]) == one.price
        assert shown["guaranteed_availability"] == as_written(one.until)
        assert shown["start_time"] == one.rented_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert (shown["duration"], _money(shown["estimated_charge"])) == (hours, dollars)
        assert shown["physical_gpus"] == [{"id": one.card, "type": one.type}]

    async def _demand_names(self) -> None:
        """A name finds the only live one that bears it."""
        name = NAMES[self.steps % len(NAMES)]
        answer = await self._call("GET", f"/api/instances/{name}")
        match self.model.named(name):
            case []:
                self._demand_refusal(answer, 404, "instance_not_found")
            case [one]:
                assert answer.json["instance"] == self.listed[one.key]
            case _:
                self._demand_refusal(answer, 400, "ambiguous_name")

    async def _demand_connection(self) -> None:
        """The way in is the one that is shown; an ended one has none."""
        if not self.model.rented:
            return
        one = self._pick(self.model.rented, self.steps)
        answer = await self._call("GET", f"/api/instances/{one.key}/connection")
        if not one.live:
            self._demand_refusal(answer, 410, "instance_gone")
            return
        way, shown = answer.json["connection"], self.listed[one.key]
        assert [way[name] for name in ("ip", "port", "user", "pem")] == [
            shown[name] for name in ("ip", "port", "user", "pem")
        ]
        assert way["known_hosts"] == f"[{way['ip']}]:{way['port']} {way['ssh_host_key']}\n"

    def _demand_events(self, one: Rented, found: Books) -> None:
        """What happened is told, once."""
        tried, told = found.of(one.key), one.told
        assert told == found.told[one.key]
        assert told["rented"] == 1
        assert told["renamed"] == one.renames
        assert told["placed"] == len(tried) - 1
        assert told["start_failed"] == sum(held.failed_at is not None for held in tried)
        assert told["released"] == sum(held.released_at is not None for held in tried)
        assert told["active"] == (one.active_at is not None)
        assert told["deleted"] == one.deleted
        assert told["ended"] == one.failed

    # --- the end -------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let all faults be over: order comes back."""
        try:
            if self.whole:
                self.run(self._end_well())
        finally:
            self.runner.close()
            self.cloud.plane.services.instances.close()

    async def _end_well(self) -> None:
        driver = self.driver
        driver.faults.clear()
        driver.reachable, driver.busy_ports = True, set()
        driver.hidden.clear()
        driver.vanished.clear()
        driver.inventory[:] = inventory()
        for orphan in self.model.orphans:
            del driver.there[orphan.name]
        self.model.orphans.clear()
        await self._rest()
        demand_order(self.store, driver)
        found = await self._checked()
        self._demand_no_double_sale(found)
        for one in self.model.rented:
            if one.live:
                assert one.status == "active"
                assert (await self._call("DELETE", f"/api/instances/{one.key}")).status == 204
                one.deleted, one.ended_at = True, self.clock.now
        await self._rest()
        demand_order(self.store, driver)
        found = await self._checked()
        assert not driver.there
        assert not found.held
        assert all(found.free.values())
        assert not self.mishaps.seen, self.mishaps.seen[0]

    async def _rest(self) -> None:
        """Let time pass until nothing is due any more."""
        await self._bury()
        for _ in range(60):
            await self._settle()
            due = await self.store.read(leases.next_due)
            if due is None:
                return
            self.clock.now = max(self.clock.now, due)
        raise AssertionError("something stays due for ever")

    # --- tools ---------------------------------------------------------------------------------------

    async def _call(
        self, method: str, path: str, json: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request; a refusal must be a documented one."""
        answer = await self.cloud.call(method, path, json, headers=headers)
        assert answer.status != 500, answer.body
        if answer.status >= 400:
            assert answer.error["code"] == answer.status
            assert answer.error["reason"] in DOCUMENTED
            assert answer.error["message"]
        return answer

    def _demand_refusal(self, answer: Answer, status: int, reason: str) -> None:
        assert (answer.status, answer.error["reason"]) == (status, reason)

    def _own(self) -> list[str]:
        """Name what runs that the store knows, in the order in which it was made."""
        return [name for name in self.driver.there if not name.startswith("vd-orphan")]

    def _pick(self, some: Sequence[T], which: int) -> T:
        return some[which % len(some)]


def _tried(found: Books, one: Rented) -> set[int]:
    return {held.gpu_id for held in found.of(one.key)}


def _orphan_spec(orphan: Orphan, card: Card, port: int) -> Spec:
    address = next(one.address for one in inventory() if one.name == card.machine)
    return Spec(
        name=orphan.name,
        hostname="stray",
        image="deep-learning-box",
        machine=card.machine,
        gpus=(card.uuid,),
        cores=1,
        ram=1,
        storage=1,
        address=address,
        port=port,
        authorized_keys=(),
        host_key="",
    )


def _money(number: float) -> Decimal:
    return Decimal(str(number))


def _date(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)


def _until(text: str) -> datetime:
    return UNLIMITED if text == "unlimited" else _date(text)


@pytest.fixture
def world(tmp_path: Path, database: Database) -> Iterator[World]:
    """A store on each database, with a renter."""
    loose = dict.fromkeys(
        ("requests_a_second", "request_burst", "anonymous_requests_a_second", "anonymous_request_burst"),
        1000000,
    )
    with asyncio.Runner() as runner:
        first = runner.run(open_cloud(tmp_path / "data", *inventory(), database=database, **loose))
        yield World(first, first.clock, database.kind)
        runner.run(first.plane.close())


@pytest.fixture
def mishaps() -> Iterator[Mishaps]:
    """The errors that nobody foresaw."""
    handler, log = Mishaps(), logging.getLogger("vectordash")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def test_a_card_that_an_orphan_holds_is_not_offered_because_an_instance_came_up_on_it(
    world: World, mishaps: Mishaps
) -> None:
    story = Story(world, mishaps)
    titan = next(at for at, card in enumerate(story.model.cards) if card.type == "Titan V")
    story.run(story._rent({"name": "one", "gpu": "Titan V"}, None, None))
    story.leave_orphan(port=PORTS[1], which=titan)
    story.reconcile("look")
    story.reconcile("work")
    story.delete(which=0, by_name=False)
    story.reconcile("work")

    story.run(story._rent({"name": "two", "gpu": "Titan V"}, None, None))  # the model knows: there is none

    story.check()
    story.teardown()


def test_one_that_is_found_gone_before_a_pass_missed_it_ends_when_it_was_last_seen_well(
    world: World, mishaps: Mishaps
) -> None:
    story = Story(world, mishaps)
    story.driver.faults.append(Fault("ensure", StartFailed("half made"), after=True))
    story.driver.faults.append(Fault("remove", DriverError("it refuses"), times=9))
    story.run(story._rent({"name": "one", "gpu": "1080 ti"}, None, None))
    story.reconcile("settle")  # its second attempt is active, and it stays due for the rest of the first
    one = story.model.rented[0]
    name = story.store.ask(books).current(one.key).driver_name
    assert one.status == "active"

    story.driver.vanish(name)
    story.wait(seconds=4 * 3600, watched=False)
    story.reconcile("work")

    story.check()
    assert one.ended_at == NOON
    assert one.use(story.clock.now) == (0, 0)
    story.teardown()


def test_any_story_ends_well_and_never_shows_what_may_not_be(
    world: World, mishaps: Mishaps, soak: Soak, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first round tells the same stories each time; a soak goes on with others."""
    told = 0
    for number in soak.rounds(1):
        run_state_machine_as_test(
            lambda: Story(world, mishaps),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                derandomize=number == 0,
                print_blob=number > 0,
                database=None,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
        told += EXAMPLES
    if soak.seconds:
        with capsys.disabled():
            print(f"\n{told} stories of {STEPS} steps on {world.kind}")  # noqa: T201 - the figures of a soak
