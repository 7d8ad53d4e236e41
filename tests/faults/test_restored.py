"""A real server whose store is a restored backup: what it has never heard of is adopted, or purged."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server import VDSERVER, Server, Servers, eventually

pytestmark = pytest.mark.needs("ssh")


def vdserver(server: Server, *arguments: str) -> str:
    """Run an operator's command on the folder of a server; gives its result."""
    command = [VDSERVER, "--data", server.data, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran
    return ran.stdout


def orphans(server: Server) -> list[Any]:
    """List what the store does not know."""
    found: list[Any] = json.loads(vdserver(server, "instance", "orphans", "--json"))
    return found


def adoptable(server: Server) -> dict[str, Any] | None:
    """Give both orphans by their hostnames, once it is known what they were made from."""
    found = {one["hostname"]: one for one in orphans(server)}
    return found if found.keys() == {"kept", "unwanted"} else None


def take_back(data: Path, backup: bytes) -> None:
    """Put yesterday's store in the place of today's."""
    for file in data.glob("store.db*"):
        file.unlink()
    (data / "store.db").write_bytes(backup)
    (data / "store.db").chmod(0o600)


def test_what_a_restored_store_does_not_know_is_adopted_or_purged(servers: Servers) -> None:
    server = servers.start()
    server.stop()
    backup = (server.data / "store.db").read_bytes()
    server = servers.start()
    was = server.rent("kept")
    server.rent("unwanted")
    config = server.ssh_config(was)
    subprocess.run(["ssh", "-F", config, "kept", "echo mine > ~/file"], check=True, timeout=60)
    server.stop()
    take_back(server.data, backup)

    server = servers.start()
    found = eventually(lambda: adoptable(server), "both to be found")
    assert server.call("GET", "/api/instances").json["instances"] == []
    (account,) = json.loads(vdserver(server, "user", "list", "--json"))
    name = found["kept"]["name"]
    key = vdserver(server, "instance", "adopt", name, "--for", account["email"]).strip()

    shown = server.call("GET", f"/api/instances/{key}").json["instance"]
    same = ("name", "ip", "port", "user", "physical_gpus", "cpu", "ram", "storage", "image", "hourly_price")
    assert {field: shown[field] for field in same} == {field: was[field] for field in same}
    assert (shown["status"], shown["pem"]) == ("active", "")
    # With the files of before: the pem, and the host key, which is checked.
    command = ["ssh", "-F", config, "kept", "cat ~/file"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "mine\n"
    known_hosts = server.call("GET", f"/api/instances/{key}/known_hosts").text
    assert known_hosts == (server.data.parent / "kept.known_hosts").read_text()

    unwanted = found["unwanted"]["name"]
    vdserver(server, "instance", "purge", unwanted, "--yes")
    eventually(lambda: not orphans(server), "the other one to be removed")
    assert not (server.data / "local" / unwanted).exists()
    assert subprocess.run(command, check=False, timeout=60).returncode == 0

    assert server.call("DELETE", f"/api/instances/{key}").status == 204
    eventually(lambda: not server.instances_alive(), "the adopted one to be ended")

    eventually(
        lambda: {one["state"] for one in json.loads(vdserver(server, "gpu", "list", "--json"))} == {"free"},
        "every GPU to be free",
    )
