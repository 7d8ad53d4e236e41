"""`vdserver doctor`: what it finds, and that the command it names mends it."""

import fcntl
import http.server
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select

from operating import Operator
from vectordash.server.cli.checks import Check, examine
from vectordash.server.cli.folder import locked
from vectordash.server.instances.tables import key_pairs
from vectordash.server.machines import store as machines
from vectordash.server.machines.tables import clusters, gpus
from vectordash.server.settings import Settings
from vectordash.server.vault import create_file


def look(operator: Operator, **settings: object) -> dict[str, Check]:
    """Make all checks, with settings that no command line has."""
    chosen = Settings(data=operator.data, **settings)  # type: ignore[arg-type]
    return {one.check: one for one in examine(chosen, operator.clock())}


def change(operator: Operator, do: object, *values: object) -> None:
    with operator.store() as store:
        store.change(do, *values)  # type: ignore[arg-type]


@contextmanager
def serving(operator: Operator, status: int) -> Iterator[int]:
    """Hold the folder as a server does, and answer with this status; gives the port."""

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else status)
            self.end_headers()
            self.wfile.write(b"the reconciler sleeps")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with locked(Settings(data=operator.data, port=server.server_port)):
                yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_sound_installation_passes_though_nothing_serves_it(operator: Operator) -> None:
    ran = operator.do("doctor")

    results = {row[1]: row[0] for row in ran.rows}
    assert "fail" not in results.values()
    assert results["server"] == "warn"
    assert next(row[4] for row in ran.rows if row[1] == "server") == "vdserver up"
    assert ran.err == ""
    assert [(one["result"], one["check"]) for one in operator.do("doctor", "--json").json] == [
        (row[0], row[1]) for row in ran.rows
    ]


def test_it_changes_nothing(operator: Operator) -> None:
    before = {path: path.read_bytes() for path in operator.data.rglob("*") if path.is_file()}

    operator.do("doctor")

    assert {path: path.read_bytes() for path in operator.data.rglob("*") if path.is_file()} == before


def test_a_failure_is_told_and_exits_1(operator: Operator) -> None:
    operator.data.chmod(0o755)

    ran = operator.run("doctor")

    assert ran.code == 1
    assert "1 of" in ran.err
    assert operator.run("doctor", "--json").code == 1


@pytest.mark.parametrize(
    ("name", "check"), [(".", "data folder"), ("encryption.key", "key file")], ids=["folder", "key"]
)
def test_what_others_may_read_is_closed_by_the_command_it_names(
    operator: Operator, name: str, check: str
) -> None:
    (operator.data / name).chmod(0o755)
    failed = look(operator)[check]
    assert (failed.result, failed.measured[:4]) == ("fail", "0755")

    subprocess.run(shlex.split(failed.mend), check=True)

    assert look(operator)[check].result == "ok"


def test_without_a_cloud_the_computer_alone_is_looked_at(operator: Operator) -> None:
    operator.data = operator.data.parent / "nowhere"

    ran = operator.run("doctor")

    assert ran.code == 1
    assert ran.rows[-1][:2] == ["fail", "store"]
    assert ran.rows[-1][4] == "vdserver up"
    assert "python" in {row[1] for row in ran.rows}
    assert not operator.data.exists()


def test_a_missing_key_and_a_wrong_one_are_told(operator: Operator) -> None:
    file = operator.data / "encryption.key"
    file.unlink()
    found = look(operator)
    assert (found["key file"].result, found["encryption key"].result) == ("fail", "fail")

    create_file(file)

    wrong = look(operator)["encryption key"]
    assert wrong.result == "fail"
    assert wrong.measured != wrong.needed
    assert str(file) in wrong.mend


def test_a_key_in_the_settings_needs_no_file(operator: Operator) -> None:
    key = (operator.data / "encryption.key").read_text().strip()
    (operator.data / "encryption.key").unlink()

    found = look(operator, encryption_keys=key)

    assert (found["key file"].result, found["encryption key"].result) == ("ok", "ok")
    assert look(operator, encryption_keys="nonsense")["encryption key"].result == "fail"


@pytest.mark.parametrize("revision", ["9999", "0000"], ids=["newer", "older"])
def test_a_store_of_another_revision_fails_and_is_looked_at_no_further(
    operator: Operator, revision: str
) -> None:
    change(
        operator,
        lambda connection: connection.exec_driver_sql(
            "update alembic_version set version_num = ?", (revision,)
        ),
    )

    found = look(operator)

    assert (found["store"].result, found["store"].measured) == ("fail", f"revision {revision}")
    assert "gpus" not in found


@pytest.mark.parametrize("at", [0, 8192], ids=["no store at all", "a torn page"])
def test_a_damaged_store_fails(operator: Operator, at: int) -> None:
    with (operator.data / "store.db").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 4096)

    assert look(operator)["store"].result == "fail"


def test_a_server_that_is_ready_is_ok(operator: Operator) -> None:
    with serving(operator, 200) as port:
        found = look(operator)

    assert found["server"].result == "ok"
    assert str(port) in found["server"].measured
    assert "of the server" in found["open files"].measured


def test_a_server_that_is_not_ready_fails_and_says_why(operator: Operator) -> None:
    with serving(operator, 503):
        server = look(operator)["server"]

    assert server.result == "fail"
    assert "/readyz answers 503: the reconciler sleeps" in server.measured
    assert "kill -9" in server.mend


def test_a_server_that_does_not_answer_fails(operator: Operator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with locked(Settings(data=operator.data, port=port)):
        server = look(operator)["server"]

    assert server.result == "fail"
    assert "/healthz does not answer" in server.measured


def test_two_doctors_at_once_do_not_take_each_other_for_a_server(operator: Operator) -> None:
    with locked(Settings(data=operator.data)):
        pass
    with (operator.data / "server.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)

        assert look(operator)["server"].measured == "none runs on this folder"


def test_a_server_that_starts_waits_for_a_doctor_to_finish(operator: Operator) -> None:
    with locked(Settings(data=operator.data)):
        pass
    other = (operator.data / "server.lock").open()
    fcntl.flock(other, fcntl.LOCK_SH)
    leaving = threading.Timer(0.02, other.close)
    leaving.start()

    with locked(Settings(data=operator.data)):
        leaving.join()


def test_an_empty_key_stock_is_a_warning_unless_none_is_wanted(operator: Operator) -> None:
    assert look(operator)["key stock"].result == "warn"
    assert look(operator, key_stock=0)["key stock"].result == "ok"

    change(
        operator, lambda connection: connection.execute(insert(key_pairs).values(pem=b"x", public_key="y"))
    )

    assert look(operator)["key stock"].result == "ok"


def test_a_range_without_a_free_port_fails(operator: Operator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = look(operator, ports=f"{port}-{port}")["ports"]

    assert ports.result == "fail"
    assert "0 of" in ports.measured
    assert "1 in use by other programs" in ports.measured
    assert "VECTORDASH_PORTS" in ports.mend


def test_an_orphan_is_named(operator: Operator) -> None:
    def record(connection: Connection) -> None:
        cluster = connection.execute(select(clusters.c.id)).scalar_one()
        machines.keep_orphans(connection, operator.clock(), cluster, [("vd-stray", "", 20001)])

    change(operator, record)

    orphans = look(operator)["orphans"]
    assert orphans.result == "fail"
    assert "vd-stray on fake since 2026-03-01 12:00" in orphans.measured


def test_a_suspect_gpu_is_cleared_by_the_command_it_names(operator: Operator) -> None:
    change(operator, machines.suspect, 2, "the fan stands still")
    suspect = look(operator)["suspect gpus"]
    assert (suspect.result, suspect.measured) == ("fail", "GPU 2: the fan stands still")

    operator.do(*shlex.split(suspect.mend)[1:])

    assert look(operator)["suspect gpus"].result == "ok"


def test_an_instance_that_nobody_works_on_is_told(busy: Operator) -> None:
    late = busy.clock() - timedelta(minutes=2)
    key = busy.do("instance", "list").rows[0][0]
    assert look(busy)["instances"].result == "ok"
    change(
        busy,
        lambda connection: connection.exec_driver_sql(
            "update instances set due_at = ? where key = ?", (late.strftime("%Y-%m-%d %H:%M:%S.%f"), key)
        ),
    )

    assert (look(busy)["instances"].result, look(busy)["instances"].mend) == ("warn", "vdserver up")
    with serving(busy, 200):
        stuck = look(busy)["instances"]
    assert stuck.result == "fail"
    assert key in stuck.measured
    assert stuck.mend == f"vdserver instance show {key}"


def test_a_cloud_that_offers_nothing_fails_until_it_does(operator: Operator) -> None:
    operator.do("gpu", "unlist", "all")
    nothing = look(operator)["gpus"]
    assert nothing.result == "fail"
    assert nothing.measured == "0 of 3 listed (3 unlisted)"

    operator.do(*shlex.split(nothing.mend)[1:])

    assert look(operator)["gpus"].measured == "3 of 3 listed (3 free)"


def test_a_cloud_without_gpus_finds_them_when_it_starts(operator: Operator) -> None:
    change(operator, lambda connection: connection.execute(gpus.delete()))

    assert look(operator)["gpus"].mend == "vdserver up"


def test_simulated_gpus_by_the_setting_are_said(operator: Operator, tmp_path: Path) -> None:
    assert "by the setting" in look(operator, simulate=True)["gpu driver"].measured
