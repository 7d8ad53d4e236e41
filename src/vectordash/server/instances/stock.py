"""The stock of key pairs: made ahead and kept sealed in the store, so that no POST waits for one.

`rent` takes from it; the loop has it refilled.
"""

import asyncio
import sys
from dataclasses import dataclass

import msgspec

from vectordash.server.db.session import Store
from vectordash.server.instances import store as rows
from vectordash.server.instances.keys import KeyPair, seal_pair
from vectordash.server.vault import Vault

_BATCH = 8
"""Pairs made and stored at a time."""


@dataclass(slots=True)
class Stock:
    """The store's key pairs, kept at `size`."""

    store: Store
    vault: Vault
    size: int

    async def refill(self) -> None:
        """Make what is missing, in a process of its own with the lowest priority."""
        while (missing := self.size - await self.store.read(rows.pairs_left)) > 0:
            made = await _make_elsewhere(min(missing, _BATCH))
            await self.store.write(rows.add_pairs, [seal_pair(self.vault, pair) for pair in made])


async def _make_elsewhere(count: int) -> list[KeyPair]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "vectordash.server.instances.keys",
        str(count),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C in the terminal is for the server alone
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise ChildProcessError(f"the maker of key pairs ended with {process.returncode}")
    return msgspec.json.decode(output, type=list[KeyPair])
