"""`vdserver token`: made once and shown once, listed without themselves, revoked for good."""

import pytest

from operating import Operator
from vectordash.server.accounts import store as users
from vectordash.server.accounts.store import Caller
from vectordash.server.accounts.tokens import hash_of
from vectordash.server.clock import UNLIMITED


def who(operator: Operator, token: str) -> Caller | None:
    with operator.store() as store:
        return store.ask(users.caller, hash_of(token), operator.clock(), UNLIMITED)


def test_a_new_token_is_all_that_is_printed_and_works(operator: Operator) -> None:
    ran = operator.do("token", "new", "Ada@example.org")

    assert ran.err == ""
    assert ran.out.endswith("\n")
    caller = who(operator, ran.out.strip())
    assert caller is not None
    assert (caller.email, caller.scope) == ("ada@example.org", "full")


def test_a_token_may_be_made_to_read_only(operator: Operator) -> None:
    caller = who(operator, operator.do("token", "new", "ada@example.org", "--read").out.strip())

    assert caller is not None
    assert caller.scope == "read"


@pytest.mark.parametrize(
    ("expires", "shown"),
    [
        ("30d", "2026-03-31 12:00:00"),
        ("12h", "2026-03-02 00:00:00"),
        ("90m", "2026-03-01 13:30:00"),
        ("2026-05-01", "2026-05-01 00:00:00"),
        ("2026-05-01 09:30", "2026-05-01 09:30:00"),
        ("2026-05-01T09:30:15Z", "2026-05-01 09:30:15"),
        ("never", "never"),
    ],
)
def test_a_token_expires_when_it_was_told_to(operator: Operator, expires: str, shown: str) -> None:
    operator.do("token", "new", "ada@example.org", "--expires", expires, "--name", "laptop")

    assert operator.do("token", "list").rows[1] == [
        "2",
        "ada@example.org",
        "laptop",
        "full",
        "live",
        shown,
        "never",
    ]


@pytest.mark.parametrize(
    "expires",
    [
        "",
        "soon",
        "30",
        "0d",
        "-1d",
        "1.5h",
        "30d12h",
        "2026-02-30",
        "2026-13-01",
        "2026-01-01",
        "1999999d",
        "٣d",
    ],
)
def test_a_time_that_makes_no_sense_is_refused(operator: Operator, expires: str) -> None:
    said = operator.refused("token", "new", "ada@example.org", f"--expires={expires}", code=2)

    assert "--expires" in said
    assert len(operator.do("token", "list").rows) == 1


def test_nobodys_token_says_how_to_make_the_account(operator: Operator) -> None:
    assert "vdserver user add bob@x" in operator.refused("token", "new", "bob@x")


@pytest.mark.parametrize("name", ["", " ", "a\tb", "n" * 101], ids=["empty", "blank", "tab", "long"])
def test_a_name_that_would_break_the_list_is_refused(operator: Operator, name: str) -> None:
    assert "A token's name" in operator.refused("token", "new", "ada@example.org", "--name", name)


def test_the_list_tells_live_expired_and_revoked_apart(operator: Operator) -> None:
    operator.do("user", "add", "bob@x.org")
    operator.do("token", "new", "bob@x.org", "--expires", "1h")
    operator.do("token", "new", "bob@x.org")
    operator.do("token", "revoke", "3")
    operator.clock.move(hours=1)  # type: ignore[attr-defined]

    assert [(row[0], row[1], row[4]) for row in operator.do("token", "list").rows] == [
        ("1", "ada@example.org", "live"),
        ("2", "bob@x.org", "expired"),
        ("3", "bob@x.org", "revoked"),
    ]
    assert [one["state"] for one in operator.do("token", "list", "BOB@x.org", "--json").json] == [
        "expired",
        "revoked",
    ]
    assert "vdserver user list" in operator.refused("token", "list", "carl@x.org")


def test_a_revoked_token_is_worthless_and_the_others_are_not(operator: Operator) -> None:
    tokens = [operator.do("token", "new", "ada@example.org").out.strip() for _ in range(3)]

    said = operator.do("token", "revoke", "2", "4", "2")

    assert [who(operator, token) is None for token in tokens] == [True, False, True]
    assert said.err.count("is revoked") == 2


def test_one_unknown_token_leaves_all_as_they_were(operator: Operator) -> None:
    assert "There is no live token 7" in operator.refused("token", "revoke", "1", "7")

    assert operator.do("token", "list").rows[0][4] == "live"
    operator.refused("token", "revoke", "vd_x", code=2)
    operator.refused("token", "revoke", "9" * 30, code=2)
