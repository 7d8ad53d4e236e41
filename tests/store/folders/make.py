"""Makes the data folders that versions of this program left behind, for the tests of upgrades.

Run it once a revision, before the version that brought it is released, from the root of that version's
checkout; what it made is never made again:

    PYTHONPATH=src:tests .venv/bin/python tests/store/folders/make.py 0002

0001.tar.gz was made by this same file with the source and the tests' harness of that version in front:

    mkdir /tmp/then
    for file in cloud needs; do git show 2e71c64:tests/$file.py > /tmp/then/$file.py; done
    PYTHONPATH=SOURCE_OF_0001:/tmp/then .venv/bin/python tests/store/folders/make.py 0001

The cloud is one of `tests/cloud.py`, on a fake cluster: two renters with a token each, three 1080 ti and two
Titan V on offer, and what `_live` says. `notes.json` holds what a test cannot read from the store: the
tokens.
"""

import asyncio
import json
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud import Cloud, open_cloud
from vectordash.server.drivers.base import StartFailed
from vectordash.server.drivers.fake import FakeInstance, Fault, simple_machine

HERE = Path(__file__).parent


async def _live(data: Path) -> dict[str, Any]:
    """Let things happen: instances active, renamed, ended, failed and pending, and one that nobody knows."""
    cards = ["NVIDIA GeForce GTX 1080 Ti"] * 3 + ["NVIDIA TITAN V"] * 2
    cloud = await open_cloud(data, simple_machine("m1", *cards, vram=12))
    other = await cloud.new_renter("grace@example.org", scope="read")
    await cloud.stock_keys(7)
    wish = {"name": "active", "gpu": "1080 ti"}
    await cloud.call("POST", "/api/instances", wish, headers={"idempotency-key": "one"})
    await cloud.settle()
    renamed = await cloud.rent("before", gpu="Titan V")
    await cloud.settle()
    await cloud.call("PUT", f"/api/instances/{renamed['key']}", {"name": "renamed"})
    await cloud.rent("ended")
    await cloud.settle()
    cloud.clock.move(hours=2, minutes=5)
    await cloud.call("DELETE", "/api/instances/ended")
    await cloud.settle()
    cloud.driver.faults.append(Fault("ensure", StartFailed("no room"), times=9))
    await cloud.rent("failed", gpu="Titan V")
    await cloud.settle()
    cloud.driver.faults.clear()
    await _orphan(cloud)
    cloud.clock.move(minutes=10)
    await cloud.rent("pending")  # and nobody works on it any more
    notes = {"token": cloud.token, "reader": other, "identity": cloud.driver.name}
    await cloud.plane.close()
    return notes


async def _orphan(cloud: Cloud) -> None:
    """Have something run on the last card that the store has never heard of."""
    known = next(iter(cloud.driver.there.values())).spec
    strange = replace(known, name="vd-strange", hostname="strange", gpus=("GPU-m1-4",), port=20900)
    cloud.driver.there["vd-strange"] = FakeInstance(strange)
    await cloud.look()


def main(revision: str) -> None:
    """Make the folder of a revision, as REVISION.tar.gz beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        notes = asyncio.run(_live(data))
        (data / "store.db").chmod(0o600)
        (data / "notes.json").write_text(json.dumps(notes) + "\n")
        with tarfile.open(HERE / f"{revision}.tar.gz", "w:gz") as tar:
            tar.add(data, "data")


if __name__ == "__main__":
    main(sys.argv[1])
