"""Secrets at rest: AES-256-GCM under a key that never enters the store.

A sealed value begins with the id of the key that sealed it, so keys can be rotated: seal under the first,
open under any that is loaded. The context (which column of which row) is authenticated with it, so that a
sealed value cannot be moved to another row. Services seal and open; tables hold only sealed bytes.
"""

import base64
import contextlib
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vectordash.server.settings import Settings
from vectordash.server.trouble import Trouble

_ID = 8
_NONCE = 12


class VaultError(Trouble):
    """The encryption key is missing or wrong; the message says which and what to do."""


class Vault:
    """Seals and opens. The first key is the current one."""

    def __init__(self, *keys: bytes) -> None:
        if not keys or any(len(key) != 32 for key in keys):
            raise VaultError("An encryption key is 32 bytes, written in base64.")
        self._keys = {_id(key): AESGCM(key) for key in keys}
        self.current = _id(keys[0])
        """Id of the key that seals; hex, not secret."""

    def seal(self, secret: str, context: str) -> bytes:
        """Encrypt `secret`; only the same `context` will open it."""
        nonce = os.urandom(_NONCE)
        sealed = self._keys[self.current].encrypt(nonce, secret.encode(), context.encode())
        return self.current.encode() + nonce + sealed

    def open(self, sealed: bytes, context: str) -> str:
        """Decrypt what `seal` made. Raises `VaultError` if its key is missing or it was changed."""
        key = self._keys.get(sealed[:_ID].decode("ascii", "replace"))
        if key is None:
            raise VaultError(f"The encryption key {sealed[:_ID]!r} is not loaded.")
        try:
            return key.decrypt(sealed[_ID : _ID + _NONCE], sealed[_ID + _NONCE :], context.encode()).decode()
        except (InvalidTag, ValueError) as error:  # the second: too short to be one
            raise VaultError(f"A sealed value of {context} was changed or moved.") from error

    def holds(self, key_id: str) -> bool:
        """Tell whether the key of that id is loaded."""
        return key_id in self._keys


def from_text(text: str) -> Vault:
    """Make a vault from base64 keys separated by commas or lines, the current one first."""
    try:
        return Vault(*(base64.b64decode(part, validate=True) for part in text.replace(",", " ").split()))
    except ValueError as error:  # not base64, or not even ASCII
        raise VaultError("An encryption key is 32 bytes, written in base64.") from error


def from_file(path: Path) -> Vault:
    """Read the vault of a data folder."""
    return from_text(path.read_text(encoding="ascii", errors="replace"))


def load(settings: Settings) -> Vault | None:
    """Load the keys that the settings give, or else the data folder's file; None where neither is."""
    if settings.encryption_keys:
        return from_text(settings.encryption_keys)
    file = settings.data / "encryption.key"
    return from_file(file) if file.exists() else None


def create_file(path: Path) -> Vault:
    """Make a new key for an empty store; the file is 0600 from the start and on disk when this returns.

    Of several processes that do so at once the first makes the key; all get that one.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(base64.b64encode(os.urandom(32)).decode() + "\n")
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(partial)
    partial.unlink()
    return from_file(path)


def _id(key: bytes) -> str:
    return hashlib.sha256(b"vectordash key id" + key).hexdigest()[:_ID]
