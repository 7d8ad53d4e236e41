"""Kill -9 of the server at random moments of a storm of creates and deletes."""

import random
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, select

from server import Server, Servers, eventually
from soaking import Soak
from vectordash.server.instances.tables import attempts, instances
from vectordash.server.machines.tables import gpus

pytestmark = pytest.mark.needs("ssh")

_RENTERS = 4
_ROUNDS = 5
"""On each database."""


@dataclass
class Rent:
    """One POST of the storm, and what its renter knows of it."""

    idempotency_key: str
    name: str
    instance: str | None = None
    """As acknowledged; None: the answer never came, or it was a refusal."""
    refused: bool = False
    deleted: bool = False
    """The DELETE was acknowledged."""


@dataclass
class Storm:
    """Renters that create and delete until the server dies."""

    server: Server
    seed: int
    rents: list[Rent] = field(default_factory=list)
    calm: threading.Event = field(default_factory=threading.Event)

    def blow(self, seconds: float) -> None:
        """Let the renters loose, kill the server after `seconds`, and wait for them to notice."""
        renters = [
            threading.Thread(target=self._rent_and_delete, args=(number,)) for number in range(_RENTERS)
        ]
        for renter in renters:
            renter.start()
        time.sleep(seconds)
        self.server.kill()
        self.calm.set()
        for renter in renters:
            renter.join()

    def _rent_and_delete(self, number: int) -> None:
        dice = random.Random(f"{self.seed}-{number}")  # noqa: S311 - a storm is no secret
        while not self.calm.is_set():
            rent = Rent(str(uuid.uuid4()), f"s{number}-{dice.randrange(1000)}")
            self.rents.append(rent)
            try:
                self._one(rent, dice)
            except (OSError, HTTPException):
                return

    def _one(self, rent: Rent, dice: random.Random) -> None:
        answer = post(self.server, rent, dice.choice(["1080 ti", "Titan V", "Tesla V100"]))
        rent.refused = answer is None
        if answer is None:
            time.sleep(0.02)
            return
        rent.instance = answer
        if dice.random() < 0.5:
            self.server.call("GET", f"/api/instances/{answer}?wait={dice.randrange(1, 3)}", timeout=10)
        if dice.random() < 0.8:
            reply = self.server.call("DELETE", f"/api/instances/{answer}", timeout=10)
            assert reply.status == 204, reply.text
            rent.deleted = True


def post(server: Server, rent: Rent, gpu: str) -> str | None:
    """Send the POST of a rent; gives the instance's key, or None where no GPU is free."""
    body = {"name": rent.name, "gpu": gpu}
    reply = server.call("POST", "/api/instances", body, {"Idempotency-Key": rent.idempotency_key}, timeout=10)
    if reply.status == 504:
        return None
    assert reply.status == 200, reply.text
    return str(reply.json["instance"]["key"])


def replay(server: Server, rent: Rent) -> str | None:
    """Send it again, whatever the GPU was; a key that was used says so by refusing another body."""
    for gpu in ("1080 ti", "Titan V", "Tesla V100"):
        body = {"name": rent.name, "gpu": gpu}
        headers = {"Idempotency-Key": rent.idempotency_key}
        reply = server.call("POST", "/api/instances", body, headers)
        if reply.status == 200:
            return str(reply.json["instance"]["key"])
        assert reply.status in (400, 504), reply.text
    return None


def held(server: Server) -> tuple[int, int, int]:
    """How many attempts, GPUs and live instances does the store hold?"""

    def count(connection: Connection) -> tuple[int, int, int]:
        held_ones = select(func.count()).select_from(attempts).where(attempts.c.released_at.is_(None))
        taken = select(func.count()).select_from(gpus).where(~gpus.c.free)
        live = select(func.count()).select_from(instances).where(instances.c.ended_at.is_(None))
        one, two, three = (connection.execute(query).scalar_one() for query in (held_ones, taken, live))
        return one, two, three

    with server.store() as store:
        return store.ask(count)


def folders(server: Server) -> list[str]:
    """Which instances have something on the disk?"""
    return sorted(path.name for path in (server.data / "local").iterdir() if path.is_dir())


class Line:
    """An SSH connection that stays open, and says back what it is told."""

    def __init__(self, config: Path, name: str) -> None:
        self.ssh = subprocess.Popen(
            ["ssh", "-F", config, name, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def echo(self, word: str) -> str:
        """Say a word and hear it back."""
        assert self.ssh.stdin is not None
        assert self.ssh.stdout is not None
        self.ssh.stdin.write(f"{word}\n")
        self.ssh.stdin.flush()
        return self.ssh.stdout.readline().strip()

    def hang_up(self) -> int:
        """End it as `cat` ends."""
        self.ssh.communicate(timeout=20)
        return self.ssh.returncode


def test_nothing_is_lost_doubled_or_left_when_the_server_is_killed(
    any_servers: Servers, soak: Soak, capsys: pytest.CaptureFixture[str]
) -> None:
    """No orphan, no stuck GPU, no lost or doubled instance; live ones keep their connections."""
    servers = any_servers
    server = servers.start(key_stock="8")
    steady = server.rent("steady", "Titan V")
    line = Line(server.ssh_config(steady), "steady")
    dice = random.Random(20260301)  # noqa: S311
    sent = acknowledged = unsure = 0
    slowest = 0.0
    number = 0
    for number in soak.rounds(_ROUNDS):
        storm = Storm(server, number)
        storm.blow(dice.uniform(0.05, 1.5))
        server = servers.start(port=server.port, key_stock="8")
        began = time.monotonic()

        assert line.echo(f"round {number}") == f"round {number}"
        check_replays(server, storm.rents)
        end_all_but(server, steady["key"])
        eventually(lambda server=server: held(server) == (1, 1, 1), f"round {number}: GPUs to be released")
        eventually(lambda server=server: len(folders(server)) == 1, f"round {number}: folders to go")

        slowest = max(slowest, time.monotonic() - began)
        sent += len(storm.rents)
        acknowledged += sum(rent.instance is not None for rent in storm.rents)
        unsure += sum(rent.instance is None and not rent.refused for rent in storm.rents)
    assert server.call("GET", "/api/instances/steady").json["instance"]["status"] == "active"
    assert line.hang_up() == 0
    server.call("DELETE", "/api/instances/steady")
    eventually(lambda: held(server) == (0, 0, 0), "the last instance to go")
    eventually(lambda: not server.instances_alive(), "no process to be left")
    with capsys.disabled():
        print(  # noqa: T201 - the figures of a soak
            f"\n{number + 1} kills on {'PostgreSQL' if servers.database else 'SQLite'}: {sent} creates sent, "
            f"{acknowledged} acknowledged, {unsure} without answer; "
            f"nothing lost, doubled or left; slowest recovery {slowest:.1f} s"
        )


def check_replays(server: Server, rents: list[Rent]) -> None:
    """Every key gives the instance that it gave before; one without an answer gives one, or none."""
    seen: dict[str, str] = {}
    for rent in rents:
        if rent.refused:
            continue
        again = replay(server, rent)
        if rent.instance is not None:
            assert again == rent.instance
        if again is not None:
            assert again not in seen, "two keys gave one instance"
            seen[again] = rent.idempotency_key
            shown = server.call("GET", f"/api/instances/{again}").json["instance"]
            assert not rent.deleted or shown["status"] == "complete"


def end_all_but(server: Server, key: str) -> None:
    """Delete whatever lives but one."""
    for instance in server.call("GET", "/api/instances").json["instances"]:
        if instance["key"] != key:
            assert server.call("DELETE", f"/api/instances/{instance['key']}").status == 204
