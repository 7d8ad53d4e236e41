"""Processes that stand still and go on, calls that hang, and computers whose clock is another one."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, select

from company import Company, Part, company, seconds_until
from databases import Postgres
from server import VDSERVER, Servers, eventually
from vectordash.server.db.presence import BURIED, processes
from vectordash.server.drivers.fake import Fault
from vectordash.server.instances.tables import events, instances

_HEALED = 10.0
_FROZEN = 3.0
"""Seconds that the cluster takes for what a holder is frozen in."""


def holder(cloud: Company, key: str) -> int | None:
    """Which process works on this instance?"""
    query = (
        select(processes.c.pid)
        .join_from(instances, processes, instances.c.lease_holder == processes.c.id)
        .where(instances.c.key == key, instances.c.lease_until.is_not(None))
    )
    return cloud.store.ask(lambda connection: connection.execute(query).scalar())


def times(cloud: Company, key: str, kind: str) -> int:
    """How often has this happened to an instance?"""
    query = select(func.count()).where(events.c.instance == key, events.c.kind == kind)
    return cloud.store.ask(lambda connection: connection.execute(query).scalar_one())


def status(cloud: Company, part: Part, key: str) -> str:
    """Give an instance's status."""
    return str(cloud.call(part.port, "GET", f"/api/instances/{key}").json["instance"]["status"])


@pytest.mark.needs("postgres")
@pytest.mark.parametrize("deed", ["ensure", "login", "remove"])
def test_a_holder_that_is_frozen_is_replaced_and_does_no_harm_when_it_wakes(
    tmp_path: Path, postgres_server: Postgres, deed: str
) -> None:
    """It wakes in the middle of a deed that another one has done meanwhile."""
    with company(tmp_path, postgres_server, apis=1, reconcilers=2) as cloud:
        part = cloud.parts[-1]
        fault = Fault(deed, delay=_FROZEN)  # type: ignore[arg-type]
        if deed != "remove":
            cloud.of_cluster(lambda driver: driver.order(fault))
        key = cloud.call(part.port, "POST", "/api/instances", {"name": "one", "gpu": "1080 ti"}).json[
            "instance"
        ]["key"]
        if deed == "remove":
            eventually(lambda: status(cloud, part, key) == "active", "it to be active")
            cloud.of_cluster(lambda driver: driver.order(fault))
            cloud.call(part.port, "DELETE", f"/api/instances/{key}")
        pid = eventually(lambda: holder(cloud, key), "somebody to work on it")

        os.kill(pid, signal.SIGSTOP)
        try:
            done: Callable[[], bool] = lambda: times(cloud, key, "active") == 1  # noqa: E731
            if deed == "remove":
                done = lambda: times(cloud, key, "released") == 1  # noqa: E731
            healed = seconds_until(done, "another one to take it up")
        finally:
            os.kill(pid, signal.SIGCONT)

        assert healed < _HEALED
        (frozen,) = [one for one in cloud.parts if one.process.pid == pid]
        eventually(lambda: "under another name" in frozen.said, "it to notice")
        # It is of use again, under another name.
        for one in cloud.parts:
            if one.kind == "reconciler" and one is not frozen:
                one.kill()
        cloud.call(part.port, "DELETE", f"/api/instances/{key}")
        second = cloud.call(part.port, "POST", "/api/instances", {"name": "two", "gpu": "1080 ti"})
        other = second.json["instance"]["key"]
        eventually(lambda: status(cloud, part, other) == "active", "the next one to be active")
        eventually(lambda: times(cloud, key, "released") == 1, "the first to be gone")
        assert times(cloud, key, "active") == 1
        assert len(cloud.of_cluster(lambda driver: driver.there())) == 1
        assert cloud.of_cluster(lambda driver: driver.violations()) == []
        assert "Traceback" not in "".join(one.said for one in cloud.parts)


@pytest.mark.needs("postgres")
def test_a_frozen_api_keeps_nobody_from_anything(tmp_path: Path, postgres_server: Postgres) -> None:
    """Frozen under load, so perhaps in the middle of a transaction: its locks are let go of in seconds."""
    cluster = ("--machines", "4", "--gpus", "8", "--faults", "0")
    with company(tmp_path, postgres_server, apis=2, reconcilers=1, cluster=cluster) as cloud:
        frozen, other = cloud.parts[-2:]

        def load() -> None:
            for number in range(400):
                try:
                    wish = {"name": f"n{number}", "gpu": "1080 ti"}
                    reply = cloud.call(frozen.port, "POST", "/api/instances", wish, timeout=2)
                    if reply.status == 200:
                        key = reply.json["instance"]["key"]
                        cloud.call(frozen.port, "DELETE", f"/api/instances/{key}", timeout=2)
                except OSError:
                    return

        loading = [threading.Thread(target=load) for _ in range(8)]
        for thread in loading:
            thread.start()
        time.sleep(1)
        frozen.process.send_signal(signal.SIGSTOP)
        try:

            def rents() -> bool:
                wish = {"name": "after", "gpu": "1080 ti"}
                return cloud.call(other.port, "POST", "/api/instances", wish).status == 200

            assert seconds_until(rents, "the other API to rent") < _HEALED
            alive = seconds_until(lambda: kinds(cloud).count("api") == 1, "the frozen one to be buried")
            assert alive < 2 * BURIED
        finally:
            frozen.process.send_signal(signal.SIGCONT)
            for thread in loading:
                thread.join()
        assert cloud.call(frozen.port, "GET", "/api/instances").status == 200
        eventually(lambda: kinds(cloud).count("api") == 2, "it to take part again")


def kinds(cloud: Company) -> list[str]:
    """Which kinds of processes take part?"""

    def question(connection: Connection) -> list[str]:
        return list(connection.execute(select(processes.c.kind)).scalars())

    return cloud.store.ask(question)


@pytest.mark.needs("postgres")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_calls_that_hang_hold_up_nobody_else(tmp_path: Path, postgres_server: Postgres, kind: str) -> None:
    """A start that hangs is given up at its deadline, on another GPU, and costs nothing until a login."""
    with company(tmp_path, postgres_server if kind == "postgresql" else None, ups=1) as cloud:
        part = cloud.parts[-1]
        cloud.of_cluster(lambda driver: driver.order(Fault("ensure", delay=float("inf"))))
        wish = {"name": "hangs", "gpu": "1080 ti"}
        first = cloud.call(part.port, "POST", "/api/instances", wish).json["instance"]
        eventually(lambda: holder(cloud, first["key"]), "it to hang")
        cloud.of_cluster(lambda driver: driver.order(Fault("instances", delay=float("inf"))))

        other = cloud.call(part.port, "POST", "/api/instances", {"name": "other", "gpu": "1080 ti"})
        key = other.json["instance"]["key"]
        shown = cloud.call(part.port, "GET", f"/api/instances/{key}?wait=10").json["instance"]
        assert shown["status"] == "active"

        later = cloud.call(part.port, "GET", f"/api/instances/{first['key']}?wait=60").json["instance"]
        assert later["status"] == "active"
        assert later["physical_gpus"][0]["id"] != first["physical_gpus"][0]["id"]
        assert later["duration"] == 1
        eventually(lambda: times(cloud, first["key"], "released") == 1, "the hanging one to be removed")
        assert len(cloud.of_cluster(lambda driver: driver.there())) == 2


def test_a_server_that_is_frozen_goes_on_where_it_was(servers: Servers) -> None:
    """Ctrl-Z, or a laptop that sleeps: no second server is let in meanwhile, and nothing is lost."""
    server = servers.start()
    made = server.rent("lasting")
    server.process.send_signal(signal.SIGSTOP)
    try:
        second = servers.launch(server.data)
        second.process.wait(20)
        assert second.process.returncode == 1
        time.sleep(_FROZEN)
    finally:
        server.process.send_signal(signal.SIGCONT)

    assert server.call("GET", f"/api/instances/{made['key']}").json["instance"]["status"] == "active"
    server.rent("next", "Titan V")


@pytest.mark.needs("unshare")
@pytest.mark.parametrize("offset", [3600, -3600], ids=["ahead", "behind"])
def test_a_restart_where_the_kernel_counts_from_elsewhere(servers: Servers, offset: int) -> None:
    """In a namespace of time whose boot clock is an hour off, as after a move of the virtual machine.

    Nothing that is kept may be counted from the boot: not the time, not the identity of a process.
    """
    if offset < 0 and time.clock_gettime(time.CLOCK_BOOTTIME) < -offset:
        offset = -int(time.clock_gettime(time.CLOCK_BOOTTIME) / 2)
    first = servers.start()
    made = first.rent("lasting")
    first.stop(signal.SIGTERM)

    command = ["unshare", "--time", "--boottime", str(offset), "--monotonic", str(offset), "--fork"]
    log = first.data.parent / "namespace.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--kill-child", VDSERVER, "up", "--data", first.data, "--port", str(first.port)],
            stdout=output,
            stderr=output,
            env=os.environ | {"VECTORDASH_SIMULATE": "1"},
        )
    try:
        eventually(lambda: answers(first), f"the server to serve: {log.read_text()}")
        shown = first.call("GET", f"/api/instances/{made['key']}").json["instance"]
        assert (shown["status"], shown["duration"]) == ("active", 1)
        assert shown["estimated_charge"] == made["estimated_charge"]
        second = first.rent("second", "Titan V")
        for key in (made["key"], second["key"]):
            assert first.call("DELETE", f"/api/instances/{key}").status == 204
        eventually(lambda: not first.instances_alive(), "the instances to end")
    finally:
        process.kill()
        process.wait(20)


def answers(server: object) -> bool:
    """Whether somebody serves there."""
    try:
        return bool(server.call("GET", "/readyz").status == 200)  # type: ignore[attr-defined]
    except OSError:
        return False
