"""`vdserver instance`: who rents what, and everything that happened to it, ended or not."""

import pytest

from operating import Operator


def key_of(operator: Operator, name: str) -> str:
    return next(str(row[0]) for row in operator.do("instance", "list", "--all").rows if row[1] == name)


def test_the_list_shows_what_is_rented_and_with_all_what_was(busy: Operator) -> None:
    live = busy.do("instance", "list").rows
    every = busy.do("instance", "list", "--all").rows

    assert [row[1:] for row in live] == [["steady", "active", "1 1080 ti", "0.64", "-", "ada@example.org"]]
    assert {row[1]: row[2:6] for row in every} == {
        "steady": ["active", "1 1080 ti", "0.64", "-"],
        "unlucky": ["complete", "3 Titan V", "0.00", "not started"],
        "ended": ["complete", "3 Titan V", "1.28", "deleted"],
    }


def test_a_key_is_never_cut_however_long_the_rest(busy: Operator) -> None:
    seen = busy.see("instance", "list", "--all")

    assert max(map(len, seen)) <= 80
    assert {line.split()[0] for line in seen[1:]} == {
        row[0] for row in busy.do("instance", "list", "--all").rows
    }


def test_the_charge_grows_with_time(busy: Operator) -> None:
    busy.clock.move(hours=8)  # type: ignore[attr-defined]

    one = busy.do("instance", "list", "--json").json[0]

    assert (one["duration"], one["estimated_charge"]) == (9, 5.76)


def test_everything_of_an_instance_is_shown(busy: Operator) -> None:
    key = key_of(busy, "unlucky")

    shown = busy.do("instance", "show", key, "--json").json

    assert {name: shown[name] for name in ("key", "name", "status", "error_occurred", "end_reason")} == {
        "key": key,
        "name": "unlucky",
        "status": "complete",
        "error_occurred": True,
        "end_reason": "not_started",
    }
    assert shown["renter"] == "ada@example.org"
    assert shown["gpu"] == {"id": 3, "type": "Titan V"}
    assert (shown["hourly_price"], shown["estimated_charge"]) == (0.64, 0.0)
    assert shown["guaranteed_availability"] == "unlimited"
    assert shown["start_time"] == "2026-03-01T13:10:00Z"
    for number, attempt in enumerate(shown["attempts"], 1):
        assert (attempt["number"], attempt["gpu_id"], attempt["machine"]) == (number, 3, "m1")
        assert attempt["failure"] == "the disk\tis full\nof ice"
        assert attempt["released_at"] == "2026-03-01T13:10:00Z"
        assert attempt["driver_name"].startswith("vd-")
    kinds = [event["kind"] for event in shown["events"]]
    assert kinds[0] == "rented"
    assert "start_failed" in kinds
    assert kinds.count("ended") == 1


def test_a_program_reads_the_same_in_tabs(busy: Operator) -> None:
    fields, attempts, events = busy.do("instance", "show", "steady").out.strip().split("\n\n")

    told = dict(line.split("\t") for line in fields.splitlines())
    assert (told["status"], told["GPU"], told["charge"]) == ("active", "1 (1080 ti)", "0.64 (1 h)")
    assert (told["created"], told["ended"], told["to be done"]) == ("2026-03-01 13:10:00", "-", "nothing")
    assert attempts.split("\t")[:4] == ["1", "1", "m1", "20001"]
    assert attempts.endswith("made 2026-03-01 13:10:00; held")
    assert [line.split("\t")[:2] for line in events.splitlines()] == [
        ["2026-03-01 13:10:00", "rented"],
        ["2026-03-01 13:10:00", "active"],
    ]


def test_what_a_driver_said_breaks_no_row(busy: Operator) -> None:
    _, attempts, _ = busy.do("instance", "show", "unlucky").out.strip().split("\n\n")

    assert "failed 2026-03-01 13:10:00: the disk is full of ice; released" in attempts.splitlines()[0]
    assert {line.count("\t") for line in attempts.splitlines()} == {5}


def test_a_terminal_gets_the_whole_story_folded_to_its_width(busy: Operator) -> None:
    seen = busy.see("instance", "show", "unlucky")

    assert max(map(len, seen)) <= 80
    assert "of ice" in " ".join(" ".join(seen).split())
    assert "…" not in "".join(seen)


@pytest.mark.parametrize("what", ["nothing", "", "%", "0" * 12])
def test_an_unknown_instance_says_where_all_are_shown(busy: Operator, what: str) -> None:
    assert "vdserver instance list --all" in busy.refused("instance", "show", what)


def test_a_name_means_the_live_one_and_a_key_any(busy: Operator) -> None:
    assert busy.do("instance", "show", "ended", "--json").json["end_reason"] == "deleted"
    assert busy.do("instance", "show", key_of(busy, "ended"), "--json").json["name"] == "ended"


@pytest.mark.parametrize(
    ("live", "shown"), [(("steady", "unlucky"), "steady"), (("unlucky", "ended"), None)], ids=["one", "none"]
)
def test_of_several_of_one_name_the_live_one_is_meant_or_the_keys_are_named(
    busy: Operator, live: tuple[str, str], shown: str | None
) -> None:
    keys = [key_of(busy, name) for name in live]
    with busy.store() as store:
        store.change(
            lambda connection: [
                connection.exec_driver_sql("update instances set name = 'same' where key = ?", (key,))
                for key in keys
            ]
        )

    if shown is not None:
        assert busy.do("instance", "show", "same", "--json").json["key"] == keys[0]
    else:
        said = busy.refused("instance", "show", "same")
        assert [key for key in keys if key not in said] == []


def test_ending_before_the_promise_is_over_needs_force(busy: Operator) -> None:
    """And then counts as a broken promise, for which the renter pays completed hours only."""
    key = key_of(busy, "steady")

    assert f"vdserver instance end {key} --force" in busy.refused("instance", "end", key)

    busy.do("instance", "end", key, "--force")
    shown = busy.do("instance", "show", key, "--json").json
    assert (shown["status"], shown["end_reason"], shown["error_occurred"]) == ("complete", "broken", True)
    assert "has ended already" in busy.refused("instance", "end", key, "--force")
