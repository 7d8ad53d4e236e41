"""`vdserver user`: accounts, their limits, and a class invited from a file."""

import csv
import io
import stat
from pathlib import Path

import pytest

from operating import Operator
from vectordash.server.accounts import store as users
from vectordash.server.accounts.store import UserRow
from vectordash.server.accounts.tokens import hash_of
from vectordash.server.clock import UNLIMITED


def account(operator: Operator, email: str) -> UserRow:
    with operator.store() as store:
        return next(user for user in store.ask(users.all_users) if user.email == email)


def emails(operator: Operator) -> list[str]:
    return [row[0] for row in operator.do("user", "list").rows]


def write(operator: Operator, text: str | bytes) -> str:
    file = operator.data.parent / "class.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


# --- add and list ------------------------------------------------------------------------------------------


def test_an_account_is_made_ready_to_rent(operator: Operator) -> None:
    said = operator.do("user", "add", "Bob@Example.org")

    made = account(operator, "bob@example.org")
    assert (made.email_confirmed, made.payment_method_added) == (True, True)
    assert said.out == ""
    assert "vdserver token new bob@example.org" in said.err


def test_an_account_may_be_made_incomplete(operator: Operator) -> None:
    operator.do("user", "add", "bob@example.org", "--unconfirmed", "--no-payment")

    made = account(operator, "bob@example.org")
    assert (made.email_confirmed, made.payment_method_added) == (False, False)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "bob",
        "bob@",
        "@example.org",
        "a b@example.org",
        "a@b@c",
        "bo\x1bb@x",
        "x" * 65 + "@x",
        "a@" + "x" * 255,
    ],
)
def test_what_is_no_email_address_is_refused(operator: Operator, email: str) -> None:
    assert "is not an e-mail address" in operator.refused("user", "add", email)


def test_a_second_account_of_an_address_is_refused_in_any_case(operator: Operator) -> None:
    said = operator.refused("user", "add", "ADA@example.org")

    assert "ada@example.org has an account already" in said
    assert "vdserver token new ada@example.org" in said


def test_the_list_shows_limits_of_its_own_only(operator: Operator) -> None:
    operator.do("user", "limits", "ada@example.org", "--gpus", "2", "--hours", "0")

    assert operator.do("user", "list").rows == [
        ["ada@example.org", "yes", "yes", "2", "0", "-", "2026-03-01 12:00:00"]
    ]
    assert operator.do("user", "list", "--json").json == [
        {
            "id": 1,
            "email": "ada@example.org",
            "email_confirmed": True,
            "payment_method_added": True,
            "limits": {"gpus_at_once": 2, "hours_an_instance": 0, "gpu_hours_a_month": None},
            "created_at": "2026-03-01T12:00:00Z",
        }
    ]


# --- limits ------------------------------------------------------------------------------------------------


def test_limits_say_what_rules(operator: Operator) -> None:
    operator.do("user", "limits", "ada@example.org", "--gpus", "2")

    shown = operator.do("user", "limits", "ada@example.org")

    assert shown.rows[0] == ["GPUs at once", "2", "this account's own"]
    assert shown.rows[1] == ["hours an instance", "any number", "the setting VECTORDASH_HOURS_AN_INSTANCE"]
    assert operator.do("user", "limits", "ada@example.org", "--json").json == {
        "gpus_at_once": {"limit": 2, "from": "account"},
        "hours_an_instance": {"limit": 0, "from": "setting"},
        "gpu_hours_a_month": {"limit": 0, "from": "setting"},
    }


def test_default_lets_the_setting_rule_again_and_leaves_the_others(operator: Operator) -> None:
    operator.do(
        "user", "limits", "ada@example.org", "--gpus", "2", "--hours", "8", "--gpu-hours-a-month", "90"
    )
    operator.do("user", "limits", "ADA@example.org", "--gpus", "default")

    assert account(operator, "ada@example.org").limits == users.Limits(None, 8, 90)


@pytest.mark.parametrize("limit", ["-1", "1.5", "many", "1000001", "", "²"])
def test_a_limit_that_is_no_number_is_refused(operator: Operator, limit: str) -> None:
    operator.refused("user", "limits", "ada@example.org", f"--gpus={limit}", code=2)

    assert account(operator, "ada@example.org").limits == users.Limits()


def test_limits_of_nobody_say_how_to_make_the_account(operator: Operator) -> None:
    assert "vdserver user add bob@x" in operator.refused("user", "limits", "bob@x", "--gpus", "2")
    assert "vdserver user add bob@x" in operator.refused("user", "limits", "bob@x")


# --- invite ------------------------------------------------------------------------------------------------


def test_a_class_gets_accounts_and_tokens_that_work(operator: Operator) -> None:
    file = write(operator, "email,name,gpus,hours\nBob@x.org,laptop,1,\ncarl@x.org,,,8\n")

    ran = operator.do("user", "invite", file)

    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [row["email"] for row in rows] == ["bob@x.org", "carl@x.org"]
    assert account(operator, "bob@x.org").limits == users.Limits(1, None, None)
    assert account(operator, "carl@x.org").limits == users.Limits(None, 8, None)
    with operator.store() as store:
        for row in rows:
            caller = store.ask(users.caller, hash_of(row["token"]), operator.clock(), UNLIMITED)
            assert caller is not None
            assert (caller.email, caller.scope) == (row["email"], "full")
    assert [row[2] for row in operator.do("token", "list").rows] == ["test", "laptop", "invitation"]
    assert ran.err == "2 made, 0 left alone.\n"


def test_the_same_file_again_makes_only_who_is_new(operator: Operator) -> None:
    operator.do("user", "invite", write(operator, "email\nbob@x.org\n"))

    ran = operator.do("user", "invite", write(operator, "email\nbob@x.org\ncarl@x.org\n"))

    assert [row.split(",")[0] for row in ran.out.splitlines()] == ["email", "carl@x.org"]
    assert "bob@x.org has an account already: left alone" in ran.err


def test_tokens_go_into_a_file_for_the_operator_alone_and_add_up(operator: Operator) -> None:
    out = operator.data.parent / "tokens.csv"
    out.touch(0o644)
    first = operator.do("user", "invite", write(operator, "email\nbob@x.org\n"), "--out", str(out))
    kept = out.read_text()
    operator.do("user", "invite", write(operator, "email\nbob@x.org\ncarl@x.org\n"), "--out", str(out))

    assert first.out == ""
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert out.read_text().startswith(kept)
    assert [row["email"] for row in csv.DictReader(io.StringIO(out.read_text()))] == [
        "bob@x.org",
        "carl@x.org",
    ]


@pytest.mark.parametrize("out", ["class.csv", "no/such/folder.csv"], ids=["holds something", "no folder"])
def test_a_file_that_cannot_take_the_tokens_is_refused_before_anything_is_made(
    operator: Operator, out: str
) -> None:
    file = write(operator, "email\nbob@x.org\n")

    operator.refused("user", "invite", file, "--out", str(operator.data.parent / out))

    assert emails(operator) == ["ada@example.org"]
    assert Path(file).read_text() == "email\nbob@x.org\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", ["is empty"]),
        ("name\nBob\n", ["no column email"]),
        ("email,gpu\nbob@x.org,1\n", ["column “gpu”", "gpus"]),
        ("email,email\nbob@x.org,a@b\n", ["two columns"]),
        ("email\nbob@x.org\nnobody\n", ["line 3: “nobody” is not an e-mail address"]),
        ("email\n\nbob@x.org\n\nBOB@x.org\n", ["line 5: bob@x.org stands in line 3 already"]),
        ("email,gpus\nbob@x.org,two\ncarl\n", ["line 2: gpus is “two”", "line 3: it has 1 cells"]),
        ("email,gpus\nbob@x.org,1000001\n", ["line 2: gpus is “1000001”"]),
        (f"email,name\nbob@x.org,{'n' * 101}\n", ["line 2: A token's name"]),
        (b"email\nbob@x.org\nj\xfcrgen@x.org\n", ["line 3 is not UTF-8"]),
        ('email\n"bob@x.org\n', ["line 2", "unexpected end"]),
        ("email\n" + "nobody\n" * 30, ["line 11: ", "and 20 more"]),
    ],
    ids=[
        "empty",
        "no email",
        "unknown column",
        "twice the column",
        "no address",
        "twice the address",
        "several",
        "too large a limit",
        "too long a name",
        "latin-1",
        "open quote",
        "many",
    ],
)
def test_a_wrong_file_makes_nothing_and_names_its_lines(
    operator: Operator, content: str | bytes, told: list[str]
) -> None:
    said = operator.refused("user", "invite", write(operator, content))

    assert [part for part in told if part not in said] == []
    assert emails(operator) == ["ada@example.org"]


def test_a_file_as_a_spreadsheet_saves_it_is_taken(operator: Operator) -> None:
    """A byte order mark, semicolons, Windows' line ends, spaces, capitals, and no end to the last line."""
    file = write(operator, b"\xef\xbb\xbfEmail;GPU-hours-a-month\r\n bob@x.org ; 90\r\n;\r\ncarl@x.org;")

    operator.do("user", "invite", file)

    assert emails(operator) == ["ada@example.org", "bob@x.org", "carl@x.org"]
    assert account(operator, "bob@x.org").limits == users.Limits(None, None, 90)


def test_a_class_may_come_from_standard_input(operator: Operator) -> None:
    process = operator.start("user", "invite", "-", stdin=-1)
    out, _ = process.communicate("email\nbob@x.org\n")

    assert process.returncode == 0
    assert out.splitlines()[1].startswith("bob@x.org,vd_")


def test_a_file_that_is_not_there_is_told(operator: Operator) -> None:
    assert "No such file" in operator.refused("user", "invite", "nowhere.csv", code=2)
