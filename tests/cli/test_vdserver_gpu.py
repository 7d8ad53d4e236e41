"""`vdserver gpu`: what is there, what is offered, and what the operator may change of it."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Connection, select

from operating import Operator, Ran
from vectordash.server.audit import audit
from vectordash.server.machines import offers
from vectordash.server.machines import store as machines
from vectordash.server.machines.tables import clusters, gpus


def states(ran: Ran) -> list[str]:
    return [row[2] for row in ran.rows]


def offered(operator: Operator, type_: str = "1080 ti") -> int | None:
    """Which GPU would be rented now?"""
    now = operator.clock()
    with operator.store() as store:
        found = store.ask(offers.best_offer, type_, now, at_least_until=now + timedelta(hours=1))
    return None if found is None else found.gpu_id


def deeds(operator: Operator) -> list[tuple[str, str, str]]:
    def question(connection: Connection) -> list[tuple[str, str, str]]:
        query = select(audit.c.who, audit.c.did, audit.c.what).order_by(audit.c.id)
        return [(who, did, what) for who, did, what in connection.execute(query) if did.endswith(" gpu")]

    with operator.store() as store:
        return store.ask(question)


def change(operator: Operator, do: Callable[[Connection], object]) -> None:
    with operator.store() as store:
        store.change(do)


def stray(operator: Operator) -> None:
    """Let the cluster run something with GPU 2 that the store does not know."""

    def record(connection: Connection) -> None:
        cluster = connection.execute(select(clusters.c.id)).scalar_one()
        uuid = connection.execute(select(gpus.c.uuid).where(gpus.c.id == 2)).scalar_one()
        machines.keep_orphans(connection, operator.clock(), cluster, [("vd-stray", uuid, None)])

    change(operator, record)


def test_each_state_has_its_word_and_says_why(busy: Operator) -> None:
    """GPU 1 is rented, 3 failed; 2 is free, then each of the others."""
    key = next(row[0] for row in busy.do("instance", "list").rows if row[1] == "steady")
    change(busy, lambda connection: machines.suspect(connection, 3, "the fan\nstands still"))

    shown = busy.do("gpu", "list")

    assert states(shown) == ["rented", "free", "suspect"]
    assert [row[6] for row in shown.rows] == [f"to {key}", "simulated", "the fan stands still"]
    assert states(busy.do("gpu", "unlist", "2")) == ["unlisted"]
    assert states(busy.do("gpu", "list", "2")) == ["free"]
    reserved = busy.do("gpu", "reserve", "2", "--for", "3h")
    assert (states(reserved), reserved.rows[0][6]) == (["reserved"], "until 2026-03-01 17:00:00")
    change(busy, lambda connection: machines.offline(connection, 1))
    assert states(busy.do("gpu", "list")) == ["absent", "absent", "absent"]


def test_json_has_every_field_under_a_name_that_stays(busy: Operator) -> None:
    key = next(row[0] for row in busy.do("instance", "list").rows if row[1] == "steady")

    assert busy.do("gpu", "list", "--json").json[0] == {
        "id": 1,
        "type": "1080 ti",
        "state": "rented",
        "hourly_price": 0.64,
        "max_availability": "unlimited",
        "listed": True,
        "reserved_until": None,
        "suspect": None,
        "instance": key,
        "machine": "m1",
        "model": "NVIDIA GeForce GTX 1080 Ti",
        "simulated": True,
        "note": f"to {key}",
    }


def test_a_price_holds_from_the_next_offer_on(operator: Operator) -> None:
    shown = operator.do("gpu", "price", "1", "2", "0.7")

    assert [row[3] for row in shown.rows] == ["0.70", "0.70"]
    assert [row[3] for row in operator.do("gpu", "list").rows] == ["0.70", "0.70", "0.64"]
    assert deeds(operator) == [("operator", "price gpu", "1 2 at 0.70")]


def test_all_means_all_and_nothing_is_an_allowed_price(operator: Operator) -> None:
    assert [row[3] for row in operator.do("gpu", "price", "all", "0").rows] == ["0.00"] * 3


def test_a_rented_gpu_is_changed_for_the_next_renter_only(busy: Operator) -> None:
    said = busy.do("gpu", "price", "all", "9.99").err

    assert "GPU 1. What was rented keeps its price" in said
    assert busy.do("instance", "show", "steady", "--json").json["hourly_price"] == 0.64


@pytest.mark.parametrize(
    ("price", "code"),
    [
        ("0.641", 2),
        ("-1", 2),
        ("1e3", 2),
        ("NaN", 2),
        ("", 2),
        ("0,64", 2),
        ("10000.01", 1),
        ("999999999", 1),
    ],
)
def test_a_price_that_makes_no_sense_changes_nothing(operator: Operator, price: str, code: int) -> None:
    operator.refused("gpu", "price", "1", "--", price, code=code)

    assert operator.do("gpu", "list").rows[0][3] == "0.64"


@pytest.mark.parametrize(
    "command",
    [
        ("price", "1", "7", "0.70"),
        ("availability", "1", "7", "30d"),
        ("list", "1", "7", "--price", "0.70"),
        ("unlist", "1", "7"),
        ("reserve", "1", "7", "--for", "3h"),
        ("clear", "1", "7"),
    ],
    ids=" ".join,
)
def test_one_unknown_gpu_leaves_all_as_they_were(operator: Operator, command: tuple[str, ...]) -> None:
    before = operator.do("gpu", "list").out

    said = operator.refused("gpu", *command)

    assert "There is no GPU 7" in said
    assert "vdserver gpu list" in said
    assert operator.do("gpu", "list").out == before
    assert deeds(operator) == []


@pytest.mark.parametrize("gpu", ["0", "-1", "1.0", "one", "1" * 30])
def test_what_is_no_gpu_is_refused(operator: Operator, gpu: str) -> None:
    operator.refused("gpu", "unlist", "--", gpu, code=2)


def test_availability_is_promised_to_the_next_renter(operator: Operator) -> None:
    assert operator.do("gpu", "availability", "1", "3", "2027-01-01").rows[0][4] == "2027-01-01 00:00:00"
    assert offered(operator) == 2
    assert operator.do("gpu", "availability", "1", "unlimited").rows[0][4] == "unlimited"
    assert offered(operator) == 1
    assert deeds(operator)[0] == ("operator", "promise gpu", "1 3 until 2027-01-01 00:00:00")


def test_a_gpu_that_ends_too_soon_is_free_and_says_why_it_is_not_offered(operator: Operator) -> None:
    shown = operator.do("gpu", "availability", "all", "30m")

    assert states(shown) == ["free"] * 3
    assert {row[6] for row in shown.rows} == {"not offered: it ends too soon"}
    assert offered(operator) is None


@pytest.mark.parametrize("date", ["2026-03-01 12:00:00", "2025-01-01", "tomorrow", "never"])
def test_a_promise_that_makes_no_sense_is_refused(operator: Operator, date: str) -> None:
    operator.refused("gpu", "availability", "1", date, code=2)


def test_an_unlisted_gpu_is_not_offered_until_it_is_listed_again(operator: Operator) -> None:
    operator.do("gpu", "unlist", "1", "2")
    assert offered(operator) is None

    operator.do("gpu", "list", "2", "--price", "0.10", "--until", "30d")

    assert offered(operator) == 2
    assert operator.do("gpu", "list").rows[1][3:5] == ["0.10", "2026-03-31 12:00:00"]
    assert [did for _, did, _ in deeds(operator)] == ["unlist gpu", "list gpu"]


def test_who_has_rented_an_unlisted_gpu_keeps_it(busy: Operator) -> None:
    said = busy.do("gpu", "unlist", "all")

    assert "Rented now: GPU 1." in said.err
    assert states(said) == ["rented", "unlisted", "unlisted"]
    assert [row[2] for row in busy.do("instance", "list").rows] == ["active"]


def test_a_gpu_without_a_price_is_not_given_away_by_oversight(operator: Operator) -> None:
    operator.do("gpu", "price", "1", "2", "0")
    operator.do("gpu", "unlist", "all")

    said = operator.refused("gpu", "list", "all")

    assert "GPU 1, 2 has no price" in said
    assert "vdserver gpu list 1 2 --price" in said
    assert offered(operator, "Titan V") is None
    operator.do("gpu", "list", "all", "--price", "0")
    assert offered(operator) == 1


def test_a_gpu_whose_time_has_passed_needs_a_new_one(operator: Operator) -> None:
    operator.do("gpu", "availability", "1", "2h")
    operator.clock.move(hours=2)  # type: ignore[attr-defined]

    assert "vdserver gpu list 1 --until unlimited" in operator.refused("gpu", "list", "all")


def test_options_without_a_gpu_are_not_taken_for_all(operator: Operator) -> None:
    assert "all" in operator.refused("gpu", "list", "--price", "0.10", code=2)


def test_a_reservation_keeps_renters_away_until_it_ends(operator: Operator) -> None:
    operator.do("gpu", "reserve", "all", "--until", "2026-03-01 15:00:00")
    assert offered(operator) is None
    operator.clock.move(hours=3)  # type: ignore[attr-defined]
    assert offered(operator) == 1
    assert states(operator.do("gpu", "list")) == ["free"] * 3

    operator.do("gpu", "reserve", "all", "--for", "90m")
    assert states(operator.do("gpu", "reserve", "all", "--release")) == ["free"] * 3
    assert offered(operator) == 1


@pytest.mark.parametrize(
    "how",
    [
        (),
        ("--for", "3h", "--release"),
        ("--for", "3h", "--until", "30d"),
        ("--for", "3"),
        ("--for", "0h"),
        ("--until", "unlimited"),
    ],
    ids=" ".join,
)
def test_a_reservation_says_once_until_when(operator: Operator, how: tuple[str, ...]) -> None:
    operator.refused("gpu", "reserve", "1", *how, code=2)


def test_a_cleared_gpu_is_offered_again(operator: Operator) -> None:
    for gpu in (1, 2):
        change(operator, lambda connection, gpu=gpu: machines.suspect(connection, gpu, "it burns"))
    assert offered(operator) is None

    ran = operator.do("gpu", "clear", "1", "2")

    assert (states(ran), ran.err) == (["free", "free"], "")
    assert offered(operator) == 1
    assert deeds(operator) == [("operator", "clear gpu", "1 2")]


def test_clearing_says_what_still_keeps_a_gpu_away(busy: Operator) -> None:
    stray(busy)
    change(
        busy,
        lambda connection: connection.execute(gpus.update().where(gpus.c.id == 3).values(present=False)),
    )

    said = busy.do("gpu", "clear", "all").err.splitlines()

    assert len(said) == 3
    assert "GPU 1 is still held by an attempt" in said[0]
    assert "GPU 2 is held by vd-stray" in said[1]
    assert "vdserver instance orphans" in said[1]
    assert "GPU 3 is absent: m1" in said[2]


def test_clearing_what_is_not_suspect_says_so(operator: Operator) -> None:
    assert operator.do("gpu", "clear", "3").err == "GPU 3 was not suspect.\n"


def test_without_any_gpu_the_server_is_what_finds_them(operator: Operator) -> None:
    change(operator, lambda connection: connection.execute(gpus.delete()))

    assert operator.do("gpu", "list").out == ""
    assert "vdserver up" in operator.refused("gpu", "price", "all", "0.64")
