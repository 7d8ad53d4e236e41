"""SSH keys: an RSA pair for the renter, an ed25519 host key for the machine.

An RSA key takes 30 to 70 ms of a core, so pairs are made ahead (`stock.py`), by a process of its own: this
module, run as a program, prints pairs as JSON. It imports little, since it is started often.
"""

import os
import sys
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from vectordash.server.vault import Vault


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


def host_key_from(private: str) -> HostKey:
    """Give a host key whose private half is all that is left of it. Raises `ValueError`."""
    try:
        key = load_ssh_private_key(private.encode(), password=None)
    except UnsupportedAlgorithm as error:
        raise ValueError("it is of a kind that is not known here") from error
    return HostKey(private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())


def seal_pair(vault: Vault, pair: KeyPair) -> tuple[bytes, str]:
    """Seal the private half, bound to its public one: (sealed, public)."""
    return vault.seal(pair.pem, pair.public), pair.public


def _main() -> None:
    os.nice(19)
    pairs = [make_pair() for _ in range(int(sys.argv[1]))]
    sys.stdout.buffer.write(msgspec.json.encode(pairs))


if __name__ == "__main__":
    _main()
