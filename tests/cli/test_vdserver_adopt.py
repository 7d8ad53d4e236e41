"""`vdserver instance orphans`, `adopt`, `purge`: what a store has never heard of, and what becomes of it."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, select

from operating import Operator
from vectordash.server import vault
from vectordash.server.audit import audit
from vectordash.server.drivers.base import Spec
from vectordash.server.instances import adoption, oversight
from vectordash.server.instances.keys import make_host_key
from vectordash.server.machines import store as machines

ADA = "ada@example.org"
KEY = "ssh-rsa AAAA"
TITAN = "GPU-m1-2"


def change(operator: Operator, do: Callable[..., Any], *values: object) -> Any:
    with operator.store() as store:
        return store.change(do, *values)


def find(connection: Connection, now: datetime, *found: tuple[str, str, int | None]) -> None:
    cluster = machines.cluster_named(connection, "fake")
    assert cluster is not None
    machines.keep_orphans(connection, now, cluster.id, found)


def keep(connection: Connection, name: str, sealed: bytes) -> None:
    machines.keep_specs(connection, 1, {name: sealed})


def spec_of(name: str, uuid: str, port: int) -> Spec:
    key = make_host_key().private
    return Spec(name, "otter", "fastai", "m1", (uuid,), 4, 20, 300, "127.0.0.1", port, (KEY,), key)


@pytest.fixture
def restored(operator: Operator) -> Operator:
    """An operator whose store knows neither `vd-1`, on the Titan V, nor `vd-2`, of which nothing was told."""
    change(operator, find, operator.clock(), ("vd-1", TITAN, 20500), ("vd-2", "GPU-m1-1 GPU-new", None))
    keys = vault.from_file(operator.data / "encryption.key")
    change(operator, keep, "vd-1", adoption.seal_spec(keys, "vd-1", spec_of("vd-1", TITAN, 20500)))
    return operator


def deeds(operator: Operator) -> list[tuple[str, str]]:
    """Give what was done, but for the start."""
    with operator.store() as store:
        query = select(audit.c.did, audit.c.what).where(audit.c.did.in_(("adopt", "purge")))
        return store.ask(lambda connection: [(did, what) for did, what in connection.execute(query)])


# orphans


def test_the_list_shows_what_each_is_and_what_was_decided(restored: Operator) -> None:
    restored.do("instance", "purge", "vd-2", "--yes")

    rows = restored.do("instance", "orphans").rows

    assert rows == [
        ["vd-1", "fake", "otter", "3", "20500", "2026-03-01 12:00", "nothing"],
        ["vd-2", "fake", "-", "2 GPU-new", "-", "2026-03-01 12:00", "purge"],
    ]


def test_a_program_gets_them_as_json(restored: Operator) -> None:
    first, second = restored.do("instance", "orphans", "--json").json

    assert first == {
        "name": "vd-1",
        "cluster": "fake",
        "hostname": "otter",
        "image": "fastai",
        "gpus": [{"id": 3, "type": "Titan V", "uuid": TITAN}],
        "port": 20500,
        "found_at": "2026-03-01T12:00:00Z",
        "adoptable": True,
        "decided": None,
    }
    assert (second["hostname"], second["adoptable"], second["port"]) == (None, False, None)
    assert second["gpus"][1] == {"id": None, "type": None, "uuid": "GPU-new"}


def test_on_a_terminal_it_fits_and_says_what_can_be_done(restored: Operator) -> None:
    seen = restored.see("instance", "orphans")

    text = "\n".join(seen)
    assert max(map(len, seen[:3])) <= 80
    assert seen[0].split() == ["NAME", "CLUSTER", "HOST", "GPU", "PORT", "SINCE", "DECIDED"]
    assert "vdserver instance adopt NAME --for EMAIL" in text
    assert "with its disk and all that is on it" in text
    assert "vdserver instance purge NAME" in text
    assert "cannot be adopted yet" in text


def test_without_any_it_says_so(operator: Operator) -> None:
    assert operator.see("instance", "orphans") == ["Nothing runs that this store does not know."]
    assert operator.do("instance", "orphans").out == ""
    assert operator.do("instance", "orphans", "--json").json == []


def test_the_list_of_instances_mentions_them(restored: Operator, operator: Operator) -> None:
    ran = restored.do("instance", "list")

    assert ran.out == ""
    assert "2 that this store does not know" in ran.err
    assert "vdserver instance orphans" in ran.err


def test_without_the_key_the_list_goes_on_and_says_why_it_knows_less(restored: Operator) -> None:
    (restored.data / "encryption.key").unlink()

    ran = restored.do("instance", "orphans")

    assert [row[2] for row in ran.rows] == ["-", "-"]
    assert "encryption.key is missing" in ran.err


def test_the_doctor_names_the_commands(restored: Operator) -> None:
    def row() -> list[str]:
        return next(row for row in restored.run("doctor").rows if row[1] == "orphans")

    assert row()[0] == "fail"
    assert "vdserver instance orphans" in row()[4]
    assert "rm -r" not in row()[4]

    restored.do("instance", "purge", "--all-orphans", "--yes")

    assert row()[0] == "warn"
    assert "vd-1 on fake since 2026-03-01 12:00, to be removed" in row()[2]
    assert row()[4] == "vdserver up"


# adopt


def test_an_adopted_orphan_is_an_instance_of_the_account(restored: Operator) -> None:
    ran = restored.do("instance", "adopt", "vd-1", "--for", "Ada@example.org")

    key = ran.out.strip()
    assert f"{key} “otter” is {ADA}'s: GPU 3 (Titan V) at 0.64 an hour, available without end" in ran.err
    shown = restored.do("instance", "show", key, "--json").json
    assert (shown["status"], shown["renter"], shown["port"]) == ("active", ADA, 20500)
    assert (shown["image"], shown["hourly_price"], shown["estimated_charge"]) == ("fastai", 0.64, 0.64)
    assert shown["start_time"] == shown["active_time"] == shown["due_at"] == "2026-03-01T12:00:00Z"
    assert [(one["number"], one["driver_name"]) for one in shown["attempts"]] == [(1, "vd-1")]
    assert [event["kind"] for event in shown["events"]] == ["adopted"]
    assert [one["name"] for one in restored.do("instance", "orphans", "--json").json] == ["vd-2"]
    (deed,) = deeds(restored)
    assert deed[0] == "adopt"
    assert f"vd-1 as {key} “otter” of {ADA}: GPU 3 (Titan V) at 0.64 an hour" in deed[1]


def test_the_operator_says_how(restored: Operator) -> None:
    how = ("--name", "mine", "--price", "0.05", "--until", "2026-04-01 08:30:00")
    key = restored.do("instance", "adopt", "vd-1", "--for", ADA, *how).out.strip()

    shown = restored.do("instance", "show", key, "--json").json
    assert (shown["name"], shown["hourly_price"]) == ("mine", 0.05)
    assert shown["guaranteed_availability"] == "2026-04-01 08:30:00"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("vd-9", "--for", ADA), "There is no orphan vd-9. They are shown by: vdserver instance orphans"),
        (("vd-2", "--for", ADA), "not known yet what vd-2 was made from"),
        (("vd-1", "--for", "eve@example.org"), "vdserver user add eve@example.org"),
        (("vd-1", "--for", ADA, "--name", "a b"), "--name NAME"),
    ],
    ids=["unknown", "not told", "no account", "bad name"],
)
def test_what_cannot_be_adopted_is_refused_in_one_line(
    restored: Operator, arguments: tuple[str, ...], said: str
) -> None:
    assert said in restored.refused("instance", "adopt", *arguments)

    assert len(restored.do("instance", "orphans").rows) == 2
    assert deeds(restored) == []


@pytest.mark.parametrize(
    "arguments",
    [(), ("vd-1",), ("vd-1", "--for", ADA, "--price", "x"), ("vd-1", "--for", ADA, "--until", "2020-01-01")],
    ids=" ".join,
)
def test_a_wrong_command_line_adopts_nothing(restored: Operator, arguments: tuple[str, ...]) -> None:
    restored.refused("instance", "adopt", *arguments, code=2)


def test_another_key_than_the_servers_adopts_nothing(
    restored: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sealed, the server could not open."""
    file = restored.data / "encryption.key"
    own = file.read_text().strip()
    file.unlink()
    assert "encryption.key is missing" in restored.refused("instance", "adopt", "vd-1", "--for", ADA)
    vault.create_file(file)
    other = file.read_text().strip()
    assert "VECTORDASH_ENCRYPTION_KEYS" in restored.refused("instance", "adopt", "vd-1", "--for", ADA)

    monkeypatch.setenv("VECTORDASH_ENCRYPTION_KEYS", f"{own},{other}")

    restored.do("instance", "adopt", "vd-1", "--for", ADA)


# purge


def marked(operator: Operator) -> list[str]:
    """Which are to be removed?"""
    found = operator.do("instance", "orphans", "--json").json
    return [one["name"] for one in found if one["decided"] == "purge"]


def test_the_named_ones_are_to_be_removed(restored: Operator) -> None:
    ran = restored.do("instance", "purge", "vd-2", "--yes")

    assert ran.out == ""
    assert "vd-2 is to be removed: a running server does so within seconds." in ran.err
    assert marked(restored) == ["vd-2"]
    assert deeds(restored) == [("purge", "vd-2")]
    assert "already" in restored.do("instance", "purge", "vd-2", "--yes").err


def test_or_all_of_them(restored: Operator) -> None:
    restored.do("instance", "purge", "--all-orphans", "--yes")

    assert marked(restored) == ["vd-1", "vd-2"]


def test_where_there_is_none_all_is_well(operator: Operator) -> None:
    ran = operator.do("instance", "purge", "--all-orphans")

    assert ran.err == "Nothing runs that this store does not know.\n"


@pytest.mark.parametrize("arguments", [("vd-1",), ("--all-orphans",)], ids=" ".join)
def test_without_a_terminal_it_wants_a_yes(restored: Operator, arguments: tuple[str, ...]) -> None:
    said = restored.refused("instance", "purge", *arguments, code=2)

    assert "--yes" in said
    assert marked(restored) == []


@pytest.mark.parametrize(
    ("typed", "removed"), [("y\n", True), ("n\n", False), ("\n", False)], ids=["yes", "no", "enter"]
)
def test_a_person_is_asked_first(restored: Operator, typed: str, removed: bool) -> None:
    seen = " ".join(" ".join(restored.see("instance", "purge", "vd-1", typed=typed)).split())

    assert "Remove vd-1, with its disk and all that is on it? [y/N]" in seen
    assert marked(restored) == (["vd-1"] if removed else [])
    assert ("Nothing is removed." in seen) != removed


@pytest.mark.parametrize("arguments", [(), ("vd-1", "--all-orphans")], ids=["none", "both"])
def test_which_ones_is_said_once(restored: Operator, arguments: tuple[str, ...]) -> None:
    restored.refused("instance", "purge", *arguments, "--yes", code=2)


def test_an_unknown_name_removes_nothing_and_asks_nothing(restored: Operator) -> None:
    said = restored.refused("instance", "purge", "vd-1", "vd-9")

    assert "There is no orphan vd-9. They are shown by: vdserver instance orphans" in said
    assert marked(restored) == []


def test_an_instance_is_ended_by_another_command(busy: Operator) -> None:
    row = next(row for row in busy.do("instance", "list").rows if row[1] == "steady")
    with busy.store() as store:
        (attempt,) = store.ask(oversight.history, row[0]).attempts

    for name in ("steady", row[0], attempt.driver_name):
        assert f"vdserver instance end {row[0]}" in busy.refused("instance", "purge", name, "--yes")
    assert "of ada@example.org" in busy.refused("instance", "adopt", attempt.driver_name, "--for", ADA)
