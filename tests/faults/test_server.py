"""What a person does to a server: Ctrl-C, a second one, a port in use, a deleted folder."""

import json
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from server import VDSERVER, Reply, Servers, eventually
from vectordash.server.app import TABLES


def test_ctrl_c_says_what_still_runs_and_how_to_end_it(any_servers: Servers) -> None:
    server = any_servers.start()
    server.rent("lasting")

    said = server.stop(signal.SIGINT)

    assert server.process.returncode == 0
    assert "1 instance still runs (lasting)" in said
    assert "DELETE" in said
    assert str(server.data) in said
    assert server.instances_alive()


def test_ctrl_c_with_nothing_running_says_so(servers: Servers) -> None:
    server = servers.start()

    said = server.stop(signal.SIGINT)

    assert "No instance runs" in said
    assert "Traceback" not in said


def test_an_instance_outlives_its_server_and_is_known_to_the_next(any_servers: Servers) -> None:
    """The next server sees it as active, and can end it."""
    first = any_servers.start()
    made = first.rent("lasting")
    first.stop(signal.SIGTERM)

    second = any_servers.start()
    shown = second.call("GET", "/api/instances/lasting").json["instance"]

    assert shown["status"] == "active"
    assert (shown["key"], shown["port"], shown["pem"]) == (made["key"], made["port"], made["pem"])
    assert second.call("DELETE", "/api/instances/lasting").status == 204
    eventually(lambda: not second.instances_alive(), "the instance to be ended")


def test_a_second_server_on_the_same_folder_is_told_who_has_it(servers: Servers) -> None:
    first = servers.start()

    second = servers.launch()
    second.process.wait(20)

    said = second.log.read_text()
    assert second.process.returncode == 1
    assert f"process {first.process.pid}" in said
    assert f"http://127.0.0.1:{first.port}" in said
    assert len(said.splitlines()) == 1
    assert first.call("GET", "/healthz").status == 200


def test_a_port_in_use_gives_one_clear_line(servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = servers.launch(port=port)
        server.process.wait(20)

    said = server.log.read_text()
    assert server.process.returncode == 1
    assert len(said.splitlines()) == 1
    assert f"Port {port}" in said
    assert "--port" in said


def test_a_deleted_data_folder_leaves_no_process(servers: Servers) -> None:
    """`rm -rf .vectordash` under live instances: they end, and so does the server."""
    server = servers.start()
    server.rent("one")
    server.rent("two", "Titan V")
    assert server.instances_alive()

    shutil.rmtree(server.data)

    eventually(lambda: not server.instances_alive(), "the instances to end")
    server.process.wait(20)
    assert "was deleted" in server.log.read_text()


def test_a_deleted_data_folder_ends_instances_without_a_server(servers: Servers) -> None:
    server = servers.start()
    server.rent("one")
    server.kill()

    shutil.rmtree(server.data)

    eventually(lambda: not server.instances_alive(), "the instance to end")


def test_a_restart_on_another_port_rewrites_the_address_alone(servers: Servers) -> None:
    first = servers.start()
    token = first.environment["VECTORDASH_TOKEN"]
    first.stop()

    second = servers.start()

    assert second.environment["VECTORDASH_TOKEN"] == token
    assert second.environment["VECTORDASH_BASE_URL"] == f"http://127.0.0.1:{second.port}"
    assert second.call("GET", "/api/account").status == 200


def test_a_lost_demo_env_gets_a_new_token_and_ends_the_old_one(servers: Servers) -> None:
    first = servers.start()
    old = first.environment["VECTORDASH_TOKEN"]
    first.stop()
    (first.data / "demo.env").unlink()

    second = servers.start()

    assert second.environment["VECTORDASH_TOKEN"] != old
    assert second.call("GET", "/api/account").status == 200
    old_one = second.call("GET", "/api/account", headers={"Authorization": f"Bearer {old}"})
    assert old_one.status == 401


def test_a_revoked_demo_token_is_replaced(servers: Servers) -> None:
    first = servers.start()
    old = first.environment["VECTORDASH_TOKEN"]
    listed = subprocess.run(
        [VDSERVER, "--data", first.data, "token", "list", "--json"], capture_output=True, check=True
    )
    (token,) = json.loads(listed.stdout)
    subprocess.run([VDSERVER, "--data", first.data, "token", "revoke", str(token["id"])], check=True)
    assert first.call("GET", "/api/account").status == 401
    first.stop()

    second = servers.start()

    assert second.environment["VECTORDASH_TOKEN"] != old
    assert second.call("GET", "/api/account").status == 200


def test_the_data_folder_is_private(servers: Servers) -> None:
    """Nobody else can read the store, the key or the token."""
    server = servers.start()

    assert server.data.stat().st_mode & 0o077 == 0
    for name in ("demo.env", "encryption.key", "store.db"):
        assert (server.data / name).stat().st_mode & 0o077 == 0, name


def test_no_secret_reaches_the_log_or_the_disk(any_servers: Servers) -> None:
    """Neither token nor private key stands anywhere but in demo.env."""
    server = any_servers.start()
    made = server.rent("one")
    token = server.environment["VECTORDASH_TOKEN"]
    server.call("GET", "/api/account", headers={"Authorization": "Bearer wrong-token-1234"})
    middle = made["pem"].splitlines()[5]

    said = server.stop()

    assert token not in said
    assert "wrong-token-1234" not in said
    for path in server.data.rglob("*"):
        if path.is_file() and path.name != "demo.env":
            content = path.read_bytes()
            assert token.encode() not in content, path
            assert middle.encode() not in content, path
    with server.store() as store:
        kept = store.ask(
            lambda connection: [connection.execute(select(table)).all() for table in TABLES.sorted_tables]
        )
    assert token not in repr(kept)
    assert middle not in repr(kept)


def test_requests_in_flight_are_answered_at_the_end(any_servers: Servers) -> None:
    """A long poll that waits for a start that hangs is answered with what there is."""
    server = any_servers.start()
    replies: list[Reply] = []
    wish = {"name": "slow", "gpu": server.environment["VECTORDASH_GPU"]}
    key = server.call("POST", "/api/instances", wish).json["instance"]["key"]
    poll = threading.Thread(
        target=lambda: replies.append(server.call("GET", f"/api/instances/{key}?wait=60"))
    )
    poll.start()

    server.stop(signal.SIGTERM)
    poll.join(20)

    assert [reply.status for reply in replies] == [200]
    assert server.process.returncode == 0


def test_logs_can_be_json(servers: Servers) -> None:
    server = servers.start(log="json")
    reply = server.call("GET", "/api/gpus")

    said = server.stop()

    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("request_id") == reply.headers["x-request-id"]]
    assert line["message"] == "GET /api/gpus 200"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["up", "--host", "::"], "127.0.0.1"),
        (["up", "--port", "70000"], "port"),
        (["up", "--data", "/proc/nothing"], "/proc/nothing"),
    ],
    ids=["beyond loopback", "no such port", "a folder that cannot be"],
)
def test_what_cannot_be_started_says_why_in_one_line(tmp_path: Path, arguments: list[str], word: str) -> None:
    done = subprocess.run(
        [VDSERVER, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )

    assert done.returncode == 1
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nobody_can_listen_beside_the_server(servers: Servers) -> None:
    """Or a program of its own user, a renter's, would be sent a part of the requests, tokens and all."""
    server = servers.start()

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", server.port))


def test_a_request_that_says_nothing_holds_no_place_for_ever(servers: Servers) -> None:
    """The server hangs up on whoever has not sent its headers; others are served meanwhile."""
    server = servers.start()

    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as silent:
        silent.sendall(b"GET /api/gpus HTTP/1.1\r\n")
        assert server.call("GET", "/api/gpus").status == 200
        while silent.recv(4096):
            pass


def test_a_damaged_store_leads_to_the_doctor(servers: Servers) -> None:
    server = servers.start()
    server.stop()
    (server.data / "store.db").write_bytes(b"no store at all" * 1000)
    for companion in ("store.db-wal", "store.db-shm"):
        (server.data / companion).unlink(missing_ok=True)

    again = servers.launch()
    again.process.wait(20)

    said = again.log.read_text()
    assert again.process.returncode == 1
    assert "vdserver doctor" in said
    assert len(said.splitlines()) == 1
