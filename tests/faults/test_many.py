"""Two APIs and two reconcilers on one PostgreSQL, many renters, a cluster that errs, and kills all along."""

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from http.client import HTTPException
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from company import Company, Part, company, seconds_until
from databases import Postgres
from server import Reply
from soaking import Soak
from vectordash.server.instances.charge import Use, charge
from vectordash.server.instances.tables import attempts, events, instances
from vectordash.server.machines.tables import gpus

pytestmark = pytest.mark.needs("postgres")

_RENTERS = 64
_CREATES = 500
_HEALED = 10.0
"""Seconds within which nothing may be left to be mended."""
_REASONS = {
    "store_unavailable",  # its connection was cut
    "store_unsettled",
    "gpu_unavailable",
    "instance_gone",
    "unavailable",
}


@dataclass
class Rush:
    """Renters that create and delete as fast as they are let, whatever is killed meanwhile."""

    company: Company
    ports: list[int]
    creates: int
    number: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    made: dict[str, set[str]] = field(default_factory=dict)
    """By `Idempotency-Key`: the instances that it has ever given."""
    answers: Counter[str] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Let all of them loose, and wait for the last."""
        renters = [threading.Thread(target=self._renter, args=(seed,)) for seed in range(_RENTERS)]
        for renter in renters:
            renter.start()
        for renter in renters:
            renter.join()

    def _renter(self, seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311 - a storm is no secret
        while next(self.number) <= self.creates:
            try:
                self._rent_and_delete(dice)
            except Exception as error:  # noqa: BLE001 - the test tells what went wrong, and where
                self.mistakes.append(f"renter {seed}: {error!r}")
                return

    def _rent_and_delete(self, dice: random.Random) -> None:
        idempotency_key, given = str(uuid.uuid4()), set[str]()
        self.made[idempotency_key] = given
        body = {"name": f"r-{idempotency_key[:8]}", "gpu": "1080 ti"}
        headers = {"Idempotency-Key": idempotency_key}
        while True:
            reply = self._send(dice, "POST", "/api/instances", body, headers)
            if reply.status == 200:
                break
            time.sleep(dice.uniform(0.01, 0.2))
        key = str(reply.json["instance"]["key"])
        given.add(key)
        if dice.random() < 0.2:  # a careful one asks twice
            again = self._send(dice, "POST", "/api/instances", body, headers)
            if again.status == 200:
                given.add(str(again.json["instance"]["key"]))
        if dice.random() < 0.7:
            self._send(dice, "GET", f"/api/instances/{key}?wait={dice.randrange(1, 4)}")
        while self._send(dice, "DELETE", f"/api/instances/{key}").status not in {204, 410}:
            time.sleep(dice.uniform(0.01, 0.1))

    def _send(
        self,
        dice: random.Random,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Ask until somebody answers; what is answered must be documented."""
        while True:
            try:
                reply = self.company.call(dice.choice(self.ports), method, path, body, headers)
            except (OSError, HTTPException):
                self.answers["no answer"] += 1
                time.sleep(0.2)
                continue
            reason = reply.json["error"]["reason"] if reply.status >= 400 else ""
            self.answers[f"{reply.status} {reason}".strip()] += 1
            if reply.status >= 400 and reason not in _REASONS:
                self.mistakes.append(f"{method} {path}: {reply.text}")
            if reply.status != 503:
                return reply
            time.sleep(0.05)


@dataclass
class Killer:
    """Kills one API and one reconciler every few seconds, and starts them again."""

    company: Company
    dice: random.Random
    over: threading.Event = field(default_factory=threading.Event)
    kills: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Kill until it is over; all live in the end."""
        while not self.over.wait(self.dice.uniform(2.0, 5.0)):
            victims = [self.kill("api"), self.kill("reconciler")]
            time.sleep(self.dice.uniform(0.0, 1.0))
            for part in victims:
                self.company.again(part)

    def kill(self, kind: str) -> Part:
        """Kill one of a kind, no matter which."""
        victim = self.dice.choice([part for part in self.company.parts if part.kind == kind])
        victim.kill()
        self.kills[kind] += 1
        return victim


def test_nothing_is_lost_or_doubled_among_several_processes_that_are_killed(
    tmp_path: Path, postgres_server: Postgres, soak: Soak, capsys: pytest.CaptureFixture[str]
) -> None:
    """No error but the documented ones, no double work, all healed within ten seconds."""
    cluster = ("--machines", "4", "--gpus", "8", "--faults", "0.05", "--delay", "0.02", "--seed", "1")
    answers, kills = Counter[str](), 0
    made: set[str] = set()
    slowest = 0.0
    began = time.monotonic()
    with company(tmp_path, postgres_server, apis=2, reconcilers=2, cluster=cluster) as cloud:
        for number in soak.rounds(1):
            cloud.stock_keys(_CREATES)
            rush = Rush(cloud, [part.port for part in cloud.parts if part.kind == "api"], _CREATES)
            killer = Killer(cloud, random.Random(number))  # noqa: S311 - a storm is no secret
            killing = threading.Thread(target=killer.run)
            killing.start()
            try:
                rush.run()
            finally:
                killer.over.set()
                killing.join()
            killed = killer.kill("reconciler")  # with the last removals in hand
            healed = seconds_until(lambda: at_rest(cloud), "all to be healed")
            cloud.again(killed)

            assert rush.mistakes == []
            assert healed < _HEALED
            assert cloud.of_cluster(lambda driver: driver.violations()) == []
            assert [keys for keys in rush.made.values() if len(keys) != 1] == []
            made |= {key for keys in rush.made.values() for key in keys}
            assert sorted(made) == sorted(cloud.store.ask(all_keys))
            assert cloud.store.ask(wrong_charges) == []
            assert cloud.store.ask(activated_twice) == []
            assert "Traceback" not in "".join(part.said for part in cloud.parts)
            answers += rush.answers
            kills += killer.kills.total()
            slowest = max(slowest, healed)
    with capsys.disabled():
        told = ", ".join(f"{count} x {what}" for what, count in answers.most_common())
        print(  # noqa: T201 - the figures of a soak
            f"\n{len(made)} instances in {time.monotonic() - began:.0f} s, {kills} kills; {told}; nothing "
            f"lost or doubled; healed {slowest:.1f} s after the last request at most"
        )


def at_rest(cloud: Company) -> bool:
    """Nothing is held, and nothing runs."""
    return what_is_left(cloud) == ([], [], [])


def what_is_left(cloud: Company) -> tuple[list[str], list[int], list[str]]:
    """Attempts that are not released, GPUs that are not free, and what runs on the cluster."""
    held = cloud.store.ask(
        lambda c: list(
            c.execute(select(attempts.c.instance).where(attempts.c.released_at.is_(None))).scalars()
        )
    )
    taken = cloud.store.ask(lambda c: list(c.execute(select(gpus.c.id).where(~gpus.c.free)).scalars()))
    there = cloud.of_cluster(lambda driver: driver.there())
    return held, taken, [one.name for one in there]


def all_keys(connection: Connection) -> list[str]:
    """Every instance that was ever made."""
    return list(connection.execute(select(instances.c.key)).scalars())


def wrong_charges(connection: Connection) -> list[str]:
    """Instances that are charged although they never became active, or longer than they lived."""
    columns = [
        instances.c.key,
        instances.c.price,
        instances.c.active_at,
        instances.c.ended_at,
        instances.c.error,
        instances.c.unseen_since,
        instances.c.free_seconds,
    ]
    wrong = []
    for key, *use in connection.execute(select(*columns)):
        hours, dollars = charge(Use(*use), use[2])
        active = use[1] is not None
        if (dollars > 0) != (active and hours > 0) or hours > 1 or (not active and dollars != Decimal(0)):
            wrong.append(f"{key}: {hours} h, {dollars}")
    return wrong


def activated_twice(connection: Connection) -> list[str]:
    """Instances whose billing began more than once."""
    found = connection.execute(select(events.c.instance).where(events.c.kind == "active")).scalars()
    return [key for key, count in Counter(found).items() if count > 1]
