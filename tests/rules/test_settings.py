"""Settings: where they come from, which wins, and what is refused."""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from vectordash.server.settings import Settings, SettingsError, load


def from_file(folder: Path, text: str, environment: Mapping[str, str] | None = None) -> Settings:
    """Load with a settings file of this text."""
    file = folder / "settings.toml"
    file.write_text(text)
    return load({"VECTORDASH_CONFIG": str(file), **(environment or {})})


def test_without_anything_given_the_defaults_hold() -> None:
    assert load({}) == Settings()


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("port = 1\ngrace = 2.5\nlog = 'json'\n")
    environment = {"VECTORDASH_CONFIG": str(file), "VECTORDASH_PORT": "3", "VECTORDASH_GRACE": "4"}

    loaded = load(environment, port=5, host=None)

    assert (loaded.port, loaded.grace, loaded.log, loaded.host) == (5, 4.0, "json", "127.0.0.1")


VALUES = {
    "HOST": ("0.0.0.0", "0.0.0.0"),  # noqa: S104 - a value, nothing listens
    "PORT": ("9000", 9000),
    "DATA": ("/srv/vectordash", Path("/srv/vectordash")),
    "DATABASE": ("postgresql://u:p@db/cloud", "postgresql://u:p@db/cloud"),
    "CLUSTER": ("fake:/run/fake.sock", "fake:/run/fake.sock"),
    "ENCRYPTION_KEYS": ("a,b", "a,b"),
    "SIMULATE": ("1", True),
    "PAYMENTS": ("free", "free"),
    "BILLING": ("second", "second"),
    "MAINTENANCE": ("yes", True),
    "GPUS_AT_ONCE": ("4", 4),
    "HOURS_AN_INSTANCE": ("24", 24),
    "GPU_HOURS_A_MONTH": ("100", 100),
    "LEAST_HOURS": ("0.5", 0.5),
    "GRACE": ("60", 60.0),
    "POLL": ("0.1", 0.1),
    "MACHINE_TIMEOUT": ("10", 10.0),
    "PORTS": ("21000-21999", "21000-21999"),
    "REQUESTS_A_SECOND": ("1", 1),
    "REQUEST_BURST": ("1", 1),
    "ANONYMOUS_REQUESTS_A_SECOND": ("1", 1),
    "ANONYMOUS_REQUEST_BURST": ("1", 1),
    "KEY_STOCK": ("0", 0),
    "LOG": ("json", "json"),
}


@pytest.mark.parametrize(("name", "value"), VALUES.items(), ids=VALUES)
def test_a_setting_is_read_from_the_environment(name: str, value: tuple[str, object]) -> None:
    text, meant = value

    loaded = load({f"VECTORDASH_{name}": text})

    assert loaded == msgspec.structs.replace(Settings(), **{name.lower(): meant})


@pytest.mark.parametrize(
    ("text", "meant"),
    [("1", True), ("true", True), ("YES", True), ("0", False), ("False", False), ("no", False), ("", False)],
)
def test_yes_and_no_are_said_in_several_ways(text: str, meant: bool) -> None:
    assert load({"VECTORDASH_SIMULATE": text}).simulate is meant


@pytest.mark.parametrize("name", ["PORT", "DATA", "HOST", "SIMULATE", "LOG", "CONFIG"])
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    assert load({f"VECTORDASH_{name}": ""}) == Settings()


def test_what_others_keep_in_the_environment_is_theirs() -> None:
    assert (
        load({"PATH": "/bin", "PORT": "1", "VECTORDASH_TOKEN": "vd_x", "VECTORDASH_GPU": "1080 ti"})
        == Settings()
    )


BAD = {
    "another database": ("DATABASE", "mysql://u:p@db/cloud", "VECTORDASH_DATABASE"),
    "a database's file": ("DATABASE", "store.db", "VECTORDASH_DATABASE"),
    "another cluster": ("CLUSTER", "incus", "VECTORDASH_CLUSTER"),
    "a simulation without a place": ("CLUSTER", "fake:", "VECTORDASH_CLUSTER"),
    "no number": ("PORT", "http", "port"),
    "port 0": ("PORT", "0", "port"),
    "port too high": ("PORT", "65536", "port"),
    "neither yes nor no": ("SIMULATE", "maybe", "simulate"),
    "none of the words": ("PAYMENTS", "stripe", "payments"),
    "another word": ("BILLING", "minute", "billing"),
    "negative": ("GPUS_AT_ONCE", "-1", "gpus_at_once"),
    "a fraction": ("GPUS_AT_ONCE", "1.5", "gpus_at_once"),
    "no time at all": ("POLL", "0", "poll"),
    "not a number": ("POLL", "nan", "poll"),
    "for ever": ("GRACE", "inf", "grace"),
    "no requests": ("REQUEST_BURST", "0", "request_burst"),
    "no range": ("PORTS", "20000", "ports"),
    "ports turned round": ("PORTS", "21000-20000", "PORTS"),
    "ports too low": ("PORTS", "80-90", "PORTS"),
    "ports too high": ("PORTS", "60000-70000", "PORTS"),
}


@pytest.mark.parametrize(("name", "text", "told"), BAD.values(), ids=BAD)
def test_a_bad_value_is_refused_and_the_setting_named(name: str, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(told)):
        load({f"VECTORDASH_{name}": text})


@pytest.mark.parametrize("name", ["VECTORDASH_MAINTENENCE", "VECTORDASH_port", "VECTORDASH_"])
def test_an_unknown_variable_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^There is no setting {name}\\.$"):
        load({name: "1"})


FILES = {
    "an unknown name": ("colour = 'red'", "unknown field `colour`"),
    "no number": ("port = 'http'", "port"),
    "a fraction": ("port = 80.5", "port"),
    "no path": ("data = 5", "data"),
    "no TOML": ("port", "cannot be read"),
    "a section": ("[server]\nport = 1", "unknown field `server`"),
}


@pytest.mark.parametrize(("text", "told"), FILES.values(), ids=FILES)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        from_file(tmp_path, text)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"The settings file .*nowhere\.toml cannot be read"):
        load({"VECTORDASH_CONFIG": str(tmp_path / "nowhere.toml")})


def test_a_file_may_set_everything(tmp_path: Path) -> None:
    loaded = from_file(tmp_path, "data = '/srv/v'\nsimulate = true\nleast_hours = 2\n")

    assert (loaded.data, loaded.simulate, loaded.least_hours) == (Path("/srv/v"), True, 2.0)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - a value, nothing listens
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_which_addresses_are_this_computers_alone(host: str, loopback: bool) -> None:
    assert Settings(host=host).loopback is loopback


def test_what_follows_from_settings() -> None:
    settings = Settings(data=Path("/srv/v"), ports="21000-21999")

    assert settings.store_url == "sqlite:////srv/v/store.db"
    assert settings.port_range == (21000, 21999)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_store_on_postgresql_is_spoken_to_by_our_driver(scheme: str) -> None:
    settings = Settings(database=f"{scheme}://u:p%2Fq@db:5433/cloud")

    assert settings.store_url == "postgresql+psycopg://u:p%2Fq@db:5433/cloud"


def test_a_refused_database_is_not_repeated_for_it_may_hold_a_password() -> None:
    with pytest.raises(SettingsError) as refused:
        load({"VECTORDASH_DATABASE": "postgresql+psycopg://u:hunter2@db/cloud"})

    assert "hunter2" not in str(refused.value)


def test_every_setting_is_tried_here() -> None:
    assert {name.lower() for name in VALUES} == set(Settings.__struct_fields__)
