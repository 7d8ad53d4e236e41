"""How a store is opened at the start of the server, and with which encryption key."""

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vectordash.server import app
from vectordash.server.db import facts
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings
from vectordash.server.vault import VaultError

Open = Callable[..., tuple[Settings, Store]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open the store of a data folder, as often as a test likes."""
    stores: list[Store] = []

    def open_again(**given: object) -> tuple[Settings, Store]:
        settings = Settings(data=tmp_path / "data", **given)
        stores.append(app.open_store(settings))
        return settings, stores[-1]

    yield open_again
    for store in stores:
        store.close()


def new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_an_empty_store_gets_a_key_of_its_own_kept_beside_it(opened: Open) -> None:
    settings, store = opened()

    vault = app.open_vault(settings, store)

    file = settings.data / "encryption.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert store.ask(facts.fact, "encryption key") == vault.current


def test_a_restart_opens_what_was_sealed_before(opened: Open) -> None:
    sealed = app.open_vault(*opened()).seal("secret", "row 1")

    assert app.open_vault(*opened()).open(sealed, "row 1") == "secret"


def test_a_store_whose_key_is_missing_is_refused_and_says_why(opened: Open) -> None:
    settings, store = opened()
    current = app.open_vault(settings, store).current
    (settings.data / "encryption.key").unlink()

    with pytest.raises(VaultError, match=f"{current}.*is missing"):
        app.open_vault(*opened())

    assert not (settings.data / "encryption.key").exists()


def test_a_store_with_another_key_is_refused_and_says_why(opened: Open) -> None:
    settings, store = opened()
    current = app.open_vault(settings, store).current
    (settings.data / "encryption.key").write_text(new_key())

    with pytest.raises(VaultError, match=f"sealed with the key {current}"):
        app.open_vault(*opened())


def test_a_key_from_the_settings_leaves_no_file(opened: Open) -> None:
    settings, store = opened(encryption_keys=new_key())

    app.open_vault(settings, store)

    assert not (settings.data / "encryption.key").exists()


def test_a_new_key_in_front_seals_and_the_old_one_still_opens(opened: Open) -> None:
    old, new = new_key(), new_key()
    sealed = app.open_vault(*opened(encryption_keys=old)).seal("secret", "row 1")

    rotated = app.open_vault(*opened(encryption_keys=f"{new},{old}"))

    assert rotated.open(sealed, "row 1") == "secret"
    assert opened()[1].ask(facts.fact, "encryption key") == rotated.current
    with pytest.raises(VaultError):
        app.open_vault(*opened(encryption_keys=old))


def test_the_data_folder_is_closed_to_others(opened: Open) -> None:
    settings, _ = opened()

    assert settings.data.stat().st_mode & 0o777 == 0o700
