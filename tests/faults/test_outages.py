"""What becomes of a serving cloud when its store is lost, full, read-only or cut off, and when it is stopped.

Each on SQLite and on PostgreSQL, with the real server. Nothing is lost, whoever asks is told why in time, and
all goes on by itself, without a restart.
"""

import contextlib
import os
import pwd
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select

from company import Company, Part, company, seconds_until
from databases import Postgres, private_postgres
from server import Reply, eventually
from vectordash.server.drivers.fake import Fault
from vectordash.server.instances.tables import attempts, instances

pytestmark = pytest.mark.needs("postgres")

_OUTAGE = 30.0
"""Seconds that the database is away."""
_HEALED = 10.0
_STOPPED = 10.0


@contextlib.contextmanager
def serving(folder: Path, postgres: Postgres | None, keys: int = 50) -> Iterator[tuple[Company, Part]]:
    """Have a cloud in one process for a while."""
    with company(folder, postgres, ups=1, keys=keys) as cloud:
        yield cloud, cloud.parts[-1]


def rent(cloud: Company, part: Part, name: str) -> str:
    """Rent, wait until it is active, and give its key."""
    reply = cloud.call(part.port, "POST", "/api/instances", {"name": name, "gpu": "1080 ti"})
    assert reply.status == 200, reply.text
    key = str(reply.json["instance"]["key"])
    shown = cloud.call(part.port, "GET", f"/api/instances/{key}?wait=20").json["instance"]
    assert shown["status"] == "active"
    return key


def status(cloud: Company, part: Part, key: str) -> str:
    """Give an instance's status; empty where it cannot be told now."""
    reply = cloud.call(part.port, "GET", f"/api/instances/{key}")
    return str(reply.json["instance"]["status"]) if reply.status == 200 else ""


def demand_refusal(reply: Reply, word: str = "") -> None:
    """A refusal for the store's sake says why, and when to come again."""
    assert reply.status == 503, reply.text
    assert reply.json["error"]["reason"] in {"store_unavailable", "store_unsettled"}
    assert int(reply.headers["retry-after"]) > 0
    assert word in reply.json["error"]["message"]


# The database is away for a while


@contextlib.contextmanager
def locked_out(cloud: Company) -> Iterator[None]:
    """Another program holds SQLite's file, as a copy by hand may do."""
    other = sqlite3.connect(cloud.settings.data / "store.db", isolation_level=None)
    try:
        other.execute("begin exclusive")
        yield
        other.execute("rollback")
    finally:
        other.close()


@contextlib.contextmanager
def power_cut(cloud: Company) -> Iterator[None]:
    """PostgreSQL ends without a word, and is started again."""
    assert cloud.postgres is not None
    cloud.postgres.stop("immediate")
    yield
    cloud.postgres.start()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_that_is_away_for_half_a_minute(tmp_path: Path, kind: str) -> None:
    """Refused in time while it is away; afterwards all goes on by itself, from where it was."""
    with contextlib.ExitStack() as stack:
        # Written through to the disk, as an operator's is: a power cut must lose nothing.
        server = stack.enter_context(private_postgres(fsync="on")) if kind == "postgresql" else None
        cloud, part = stack.enter_context(serving(tmp_path, server))
        running, doomed = rent(cloud, part, "running"), rent(cloud, part, "doomed")
        wish, once = {"name": "promised", "gpu": "1080 ti"}, {"Idempotency-Key": "before"}
        promised = cloud.call(part.port, "POST", "/api/instances", wish, once).json["instance"]["key"]
        away = power_cut if kind == "postgresql" else locked_out
        with away(cloud):
            end = time.monotonic() + _OUTAGE
            slowest = 0.0
            while time.monotonic() < end:
                began = time.monotonic()
                demand_refusal(
                    cloud.call(part.port, "POST", "/api/instances", {"name": "late", "gpu": "1080 ti"})
                )
                demand_refusal(cloud.call(part.port, "DELETE", f"/api/instances/{doomed}"))
                slowest = max(slowest, time.monotonic() - began)
                listed = cloud.call(part.port, "GET", "/api/instances")
                if kind == "postgresql":
                    demand_refusal(listed)
                    assert "store" in cloud.call(part.port, "GET", "/readyz").json
                else:  # readers go on: that is what its write-ahead log is for
                    assert listed.status == 200
                assert cloud.call(part.port, "GET", "/healthz").status == 200
                time.sleep(1)
            assert len(cloud.of_cluster(lambda driver: driver.there())) >= 2, "something was touched"
        healed = seconds_until(
            lambda: cloud.call(part.port, "GET", "/readyz").status == 200, "the server to be ready"
        )

        assert status(cloud, part, running) == "active"
        again = cloud.call(part.port, "POST", "/api/instances", wish, once)
        assert again.json["instance"]["key"] == promised
        assert cloud.call(part.port, "DELETE", f"/api/instances/{doomed}").status == 204
        rent(cloud, part, "after")
        healed += seconds_until(lambda: len(cloud.of_cluster(lambda one: one.there())) == 3, "the end of one")
        assert healed < _HEALED
        assert slowest < 15.0
        assert part.process.poll() is None
        assert "Traceback" not in part.said


def test_a_start_that_was_under_way_when_the_database_went_is_taken_up(tmp_path: Path) -> None:
    """Its worker had to put its tools down, and could not say so."""
    with private_postgres() as server, serving(tmp_path, server) as (cloud, part):
        cloud.of_cluster(lambda driver: driver.order(Fault("ensure", delay=8.0)))
        wish = {"name": "one", "gpu": "1080 ti"}
        key = cloud.call(part.port, "POST", "/api/instances", wish).json["instance"]["key"]
        leased = select(instances.c.key).where(instances.c.lease_until.is_not(None))
        eventually(lambda: cloud.store.ask(lambda one: one.execute(leased).scalar()), "the start")
        with power_cut(cloud):
            time.sleep(6)

        healed = seconds_until(lambda: status(cloud, part, key) == "active", "it to be active")

        assert healed < _HEALED
        assert "under another name" in part.said


def test_connections_that_are_cut_all_the_time(tmp_path: Path, postgres_server: Postgres) -> None:
    """Also in the middle of a transaction, and of its commit: nothing is lost, and nothing made twice."""
    with serving(tmp_path, postgres_server) as (cloud, part):
        over = threading.Event()
        cuts = Counter[str]()

        def cut() -> None:
            with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as connection:
                while not over.wait(0.05):
                    found = connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
                        [cloud.name],
                    )
                    cuts["cut"] += len(found.fetchall())

        cutting = threading.Thread(target=cut)
        cutting.start()
        made: list[str] = []
        try:
            made += [persist(cloud, part, number) for number in range(60)]
        finally:
            over.set()
            cutting.join()
        eventually(lambda: held(cloud) == [], "everything to be released")

        assert len(set(made)) == 60
        assert sorted(
            cloud.store.ask(lambda c: list(c.execute(select(instances.c.key)).scalars()))
        ) == sorted(made)
        assert cuts["cut"] > 60
        assert "Traceback" not in part.said


def persist(cloud: Company, part: Part, number: int) -> str:
    """Create and delete, each until it is answered; gives the key."""
    wish, headers = {"name": f"n{number}", "gpu": "1080 ti"}, {"Idempotency-Key": f"key {number}"}
    while True:
        reply = cloud.call(part.port, "POST", "/api/instances", wish, headers)
        if reply.status == 200:
            break
        assert reply.status in {503, 504}, reply.text
        time.sleep(0.01)
    key = str(reply.json["instance"]["key"])
    while (reply := cloud.call(part.port, "DELETE", f"/api/instances/{key}")).status not in {204, 410}:
        demand_refusal(reply)
        time.sleep(0.01)
    return key


def held(cloud: Company) -> list[str]:
    """Which attempts hold something?"""
    query = select(attempts.c.instance).where(attempts.c.released_at.is_(None))
    return cloud.store.ask(lambda connection: list(connection.execute(query).scalars()))


# The disk is full, or read-only


@dataclass
class Disk:
    """A small disk of its own."""

    path: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.path / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def clean(self) -> None:
        """Give the space back."""
        (self.path / "filler").unlink()

    def set(self, mode: str) -> None:
        """Make it read-only, or no longer."""
        subprocess.run(["mount", "-o", f"remount,{mode}", self.path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 24 MB, that nobody else uses."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "none", path], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def on_disk(kind: str, folder: Path, disk: Disk, server: Postgres | None) -> Iterator[tuple[Company, Part]]:
    """Have a cloud whose store is on that disk: SQLite's file, or a tablespace of PostgreSQL."""
    if kind == "sqlite":
        (disk.path / "data").mkdir()
        (folder / "data").symlink_to(disk.path / "data")
        with serving(folder, None) as (cloud, part):
            yield cloud, part
        return
    assert server is not None
    place = disk.path / "space"
    place.mkdir(mode=0o700)
    nobody = pwd.getpwnam("nobody")
    os.chown(place, nobody.pw_uid, nobody.pw_gid)
    # The folders above a test's are closed to others.
    with contextlib.ExitStack() as stack:
        for above in place.parents:
            if above.stat().st_mode & 0o001 == 0:
                stack.callback(above.chmod, above.stat().st_mode & 0o777)
                above.chmod(above.stat().st_mode & 0o777 | 0o011)
        server.do(f"create tablespace small location '{place}'")
        try:
            with serving(folder, server) as (cloud, part):
                move_to_disk(cloud)
                yield cloud, part
        finally:
            server.do("drop tablespace small")


def move_to_disk(cloud: Company) -> None:
    """Put what grows at a rent onto the small disk."""
    with psycopg.connect(cloud.settings.database, autocommit=True) as connection:
        for table in ("instances", "attempts", "events", "audit", "idempotency"):
            connection.execute(f"alter table {table} set tablespace small".encode())


@pytest.mark.needs("mount")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_full_disk(tmp_path: Path, disk: Disk, postgres_server: Postgres, kind: str) -> None:
    """What must be written is refused, what can be read is read; with space again all goes on."""
    with on_disk(kind, tmp_path, disk, postgres_server) as (cloud, part):
        key = rent(cloud, part, "running")
        disk.fill()
        name, refused = rename_until_refused(cloud, part, key, "running")

        demand_refusal(refused, "full")
        shown = cloud.call(part.port, "GET", f"/api/instances/{key}")
        assert (shown.status, shown.json["instance"]["name"]) == (200, name)
        late = cloud.call(part.port, "POST", "/api/instances", {"name": "late", "gpu": "1080 ti"})
        listed = cloud.call(part.port, "GET", "/api/instances").json["instances"]
        assert len(listed) == (2 if late.status == 200 else 1)
        disk.clean()

        eventually(lambda: cloud.call(part.port, "GET", "/readyz").status == 200, "it to be ready")
        rent(cloud, part, "after")
        for one in cloud.call(part.port, "GET", "/api/instances").json["instances"]:
            assert cloud.call(part.port, "DELETE", f"/api/instances/{one['key']}").status == 204
        assert status(cloud, part, key) == "complete"
        eventually(lambda: held(cloud) == [], "everything to be released")
        assert "Traceback" not in part.said


def rename_until_refused(cloud: Company, part: Part, key: str, name: str) -> tuple[str, Reply]:
    """Use up what a database has set aside; gives the last name that was acknowledged, and the refusal."""
    for number in range(20_000):
        reply = cloud.call(part.port, "PUT", f"/api/instances/{key}", {"name": f"n{number}"})
        if reply.status != 200:
            return name, reply
        name = f"n{number}"
    raise AssertionError("the disk is never full")


@contextlib.contextmanager
def read_only(server: Postgres) -> Iterator[None]:
    """Let nothing be written, as an administrator does to PostgreSQL, or a switch to a replica."""
    server.do("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
    try:
        yield
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute("alter system reset default_transaction_read_only")
            connection.execute("select pg_reload_conf()")


def test_a_store_that_becomes_read_only(tmp_path: Path, postgres_server: Postgres) -> None:
    """Refused, not half done; writable again, all goes on. (No disk becomes so under SQLite's open file.)"""
    with serving(tmp_path, postgres_server) as (cloud, part):
        key = rent(cloud, part, "running")
        wish = {"name": "late", "gpu": "1080 ti"}
        with read_only(postgres_server):

            def refused() -> bool:
                return cloud.call(part.port, "POST", "/api/instances", wish).status == 503

            eventually(refused, "a rent to be refused")
            demand_refusal(cloud.call(part.port, "POST", "/api/instances", wish), "read-only")
            demand_refusal(cloud.call(part.port, "DELETE", f"/api/instances/{key}"), "read-only")
            assert status(cloud, part, key) == "active"

        def deleted() -> bool:
            return cloud.call(part.port, "DELETE", f"/api/instances/{key}").status in {204, 410}

        eventually(deleted, "it to be deleted")
        rent(cloud, part, "after")
        assert "Traceback" not in part.said


@pytest.mark.needs("mount")
def test_a_read_only_folder_is_refused_in_one_line(tmp_path: Path, disk: Disk) -> None:
    with on_disk("sqlite", tmp_path, disk, None) as (cloud, part):
        part.process.terminate()
        part.process.wait(20)
        cloud.store.hang_up()
        disk.set("ro")
        with part.log.open("w") as output:
            again = subprocess.run(
                part.command, stdout=output, stderr=output, env=cloud.environment, check=False, timeout=30
            )

        assert again.returncode == 1
        assert part.said.startswith("vdserver: ")
        assert len(part.said.splitlines()) == 1
        disk.set("rw")


# It is stopped


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_server_that_is_stopped_under_load(tmp_path: Path, postgres_server: Postgres, kind: str) -> None:
    """Who waits is answered at once, who is being served is served, and it ends within ten seconds."""
    server = postgres_server if kind == "postgresql" else None
    with serving(tmp_path, server, keys=400) as (cloud, part):
        stopping = threading.Event()
        answers = Counter[int]()
        broken: list[str] = []
        waited: list[tuple[int, float]] = []
        cloud.of_cluster(lambda driver: driver.order(Fault("ensure", delay=60.0)))
        pending = cloud.call(part.port, "POST", "/api/instances", {"name": "slow", "gpu": "1080 ti"})
        key = pending.json["instance"]["key"]

        def wait() -> None:
            reply = cloud.call(part.port, "GET", f"/api/instances/{key}?wait=60")
            waited.append((reply.status, time.monotonic()))

        def load(number: int) -> None:
            while True:
                begun_before = not stopping.is_set()
                try:
                    wish = {"name": f"load-{number}", "gpu": "1080 ti"}
                    reply = cloud.call(part.port, "POST", "/api/instances", wish)
                    answers[reply.status] += 1
                    if reply.status == 200:
                        made = reply.json["instance"]["key"]
                        answers[cloud.call(part.port, "DELETE", f"/api/instances/{made}").status] += 1
                except ConnectionRefusedError:
                    return
                except (OSError, HTTPException) as error:
                    if begun_before and not stopping.is_set():
                        broken.append(repr(error))
                    return

        threads = [threading.Thread(target=wait) for _ in range(20)]
        threads += [threading.Thread(target=load, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: answers.total() > 50, "load")
        stopping.set()
        told = time.monotonic()
        part.process.send_signal(signal.SIGTERM)
        part.process.wait(20)
        lasted = time.monotonic() - told
        for thread in threads:
            thread.join()

        assert lasted < _STOPPED
        assert part.process.returncode == 0
        assert [one for one, _ in waited] == [200] * 20
        assert max(moment for _, moment in waited) - told < 2.0
        assert broken == []
        assert set(answers) <= {200, 204, 504, 503}
        assert "Traceback" not in part.said
        # What it had in hand is free at once for the next one.
        cloud.again(part)
        eventually(lambda: status_or_none(cloud, part, key) == "active", "the slow one to be active")


def status_or_none(cloud: Company, part: Part, key: str) -> str | None:
    """Give an instance's status, or None while nobody serves."""
    try:
        return status(cloud, part, key)
    except OSError:
        return None
