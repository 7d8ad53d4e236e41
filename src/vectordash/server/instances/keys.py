"""SSH keys: an RSA pair for the renter, an ed25519 host key for the machine, and the stock of the former.

An RSA key takes 30 to 70 ms of a core, so pairs are made ahead, by a process of its own (this module run
as a program: it prints pairs as JSON lines), and kept sealed in the store. `Stock` refills it; `rent` takes
from it.
"""

import asyncio
import sys
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from vectordash.server.db.session import Store
from vectordash.server.instances import store as rows
from vectordash.server.vault import Vault

_BATCH = 8
"""Pairs made and stored at a time."""


class KeyPair(msgspec.Struct, frozen=True):
    """A renter's key: the private half in traditional PEM, the public one as a line of OpenSSH."""

    pem: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public[:30]}…)"


@dataclass(frozen=True, slots=True)
class HostKey:
    """A machine's SSH host key."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"HostKey({self.public})"


def make_pair() -> KeyPair:
    """Make an RSA-2048 pair; 30 to 70 ms, so never on the event loop."""
    key = generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return KeyPair(pem.decode(), public.decode())


def make_host_key() -> HostKey:
    """Make an ed25519 host key; a tenth of a millisecond."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return HostKey(private.decode(), public.decode())


def seal_pair(vault: Vault, pair: KeyPair) -> tuple[bytes, str]:
    """Seal the private half, bound to its public one: (sealed, public)."""
    return vault.seal(pair.pem, pair.public), pair.public


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
        "-m",
        "vectordash.server.instances.keys",
        str(count),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return msgspec.json.decode(output, type=list[KeyPair])


def _main() -> None:
    import os  # noqa: PLC0415 - only the program needs it

    os.nice(19)
    pairs = [make_pair() for _ in range(int(sys.argv[1]))]
    sys.stdout.buffer.write(msgspec.json.encode(pairs))


if __name__ == "__main__":
    _main()
