"""Secrets at rest: what is sealed opens only with its key, unchanged, and in its own place."""

import base64
import os
import stat
from pathlib import Path

import pytest

from vectordash.server import vault
from vectordash.server.vault import Vault, VaultError

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


@pytest.mark.parametrize("secret", ["", "a", "-----BEGIN RSA PRIVATE KEY-----\n…\n", "🦦\0\n", "x" * 100_000])
def test_what_was_sealed_opens_again(secret: str) -> None:
    one = Vault(ONE)

    assert one.open(one.seal(secret, "context"), "context") == secret


def test_a_secret_is_sealed_differently_each_time_and_does_not_show() -> None:
    one = Vault(ONE)
    sealed = {one.seal("the secret", "context") for _ in range(10)}

    assert len(sealed) == 10
    assert not any(b"secret" in value or b"context" in value for value in sealed)


def test_a_sealed_value_opens_in_its_own_place_only() -> None:
    one = Vault(ONE)
    sealed = one.seal("the secret", "instance 1")

    with pytest.raises(VaultError, match="of instance 2 was changed or moved"):
        one.open(sealed, "instance 2")


def test_a_changed_value_does_not_open() -> None:
    """Whichever byte was changed, be it of the key's id, the nonce, the secret or the tag."""
    one = Vault(ONE)
    sealed = one.seal("the secret", "context")

    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(VaultError):
            one.open(bytes(changed), "context")


def test_a_value_sealed_with_an_unknown_key_names_that_key() -> None:
    sealed = Vault(TWO).seal("the secret", "context")

    with pytest.raises(VaultError, match=Vault(TWO).current):
        Vault(ONE).open(sealed, "context")


def test_keys_are_rotated_by_putting_the_new_one_first() -> None:
    old, both = Vault(ONE), Vault(TWO, ONE)
    sealed = old.seal("the secret", "context")

    assert both.open(sealed, "context") == "the secret"
    assert both.current == Vault(TWO).current != old.current
    assert Vault(TWO).open(both.seal("new", "context"), "context") == "new"
    assert both.holds(old.current)
    assert not Vault(TWO).holds(old.current)


def test_the_id_of_a_key_tells_nothing_of_it() -> None:
    assert Vault(ONE).current == Vault(ONE).current
    assert len({Vault(key).current for key in (ONE, TWO, THREE)}) == 3
    assert ONE.hex()[:8] != Vault(ONE).current


def test_an_error_never_shows_a_key_or_a_secret() -> None:
    sealed = Vault(ONE).seal("the secret", "context")
    for wrong in (Vault(TWO), Vault(ONE)):
        with pytest.raises(VaultError) as error:
            wrong.open(sealed, "another context")
        assert "the secret" not in str(error.value)
        assert ONE.hex() not in str(error.value)
        assert base64.b64encode(ONE).decode() not in str(error.value)


@pytest.mark.parametrize("length", [0, 5, 8, 15, 20, 30])
def test_a_cut_value_does_not_open(length: int) -> None:
    one = Vault(ONE)
    sealed = one.seal("the secret", "context")

    with pytest.raises(VaultError):
        one.open(sealed[:length], "context")


def written(*keys: bytes) -> list[str]:
    """Write keys as settings do."""
    return [base64.b64encode(key).decode() for key in keys]


@pytest.mark.parametrize("between", [",", "\n", " ", ", ", ",\n", "\n\n"], ids=repr)
def test_keys_are_separated_by_commas_or_lines(between: str) -> None:
    loaded = vault.from_text(between.join(written(TWO, ONE)) + "\n")

    assert loaded.current == Vault(TWO).current
    assert loaded.holds(Vault(ONE).current)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "secret",
        "ключ",
        *written(b"short", bytes(31), bytes(33)),
        written(ONE)[0][:-1],
        "!" * 44,
    ],
    ids=[
        "none",
        "blank",
        "comma",
        "a word",
        "not ASCII",
        "short",
        "31 bytes",
        "33 bytes",
        "cut",
        "no base64",
    ],
)
def test_what_is_no_key_is_refused_in_words(text: str) -> None:
    with pytest.raises(VaultError, match="An encryption key is 32 bytes, written in base64"):
        vault.from_text(text)


def test_a_new_key_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask; another call makes another key."""
    file = tmp_path / "encryption.key"
    before = os.umask(0)
    try:
        made = vault.create_file(file)
    finally:
        os.umask(before)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    assert vault.from_file(file).current == made.current
    assert vault.create_file(tmp_path / "another.key").current != made.current
