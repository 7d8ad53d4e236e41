"""What holds for every command of `vdserver`: folders, pipes, terminals, errors, and what is loaded."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from operating import Operator
from server import Servers
from vectordash.server.cli import run
from vectordash.server.cli.folder import locked
from vectordash.server.settings import Settings

QUESTIONS = [
    ("user", "list"),
    ("user", "limits", "ada@example.org"),
    ("token", "list"),
    ("gpu", "list"),
    ("instance", "list"),
]
DEEDS = [
    ("user", "add", "bob@example.org"),
    ("token", "new", "ada@example.org"),
    ("token", "revoke", "1"),
    ("gpu", "price", "1", "0.70"),
]
COMMANDS = [
    (),
    ("user",),
    ("user", "add"),
    ("user", "list"),
    ("user", "invite"),
    ("user", "limits"),
    ("token",),
    ("token", "new"),
    ("token", "list"),
    ("token", "revoke"),
    ("gpu",),
    ("gpu", "list"),
    ("gpu", "unlist"),
    ("gpu", "price"),
    ("gpu", "availability"),
    ("gpu", "reserve"),
    ("gpu", "clear"),
    ("backup",),
    ("restore",),
    ("move",),
    ("instance",),
    ("instance", "list"),
    ("instance", "show"),
    ("doctor",),
]


@pytest.mark.parametrize("command", QUESTIONS + DEEDS, ids=" ".join)
def test_a_folder_without_a_cloud_is_refused_and_not_made(
    operator: Operator, command: tuple[str, ...]
) -> None:
    operator.data = operator.data.parent / "nowhere"

    said = operator.refused(*command)

    assert "There is no cloud in" in said
    assert "vdserver up" in said
    assert not operator.data.exists()


@pytest.mark.parametrize(
    ("revision", "mend"),
    [("9999", "Use the newer program"), ("0000", "upgraded by: vdserver up")],
    ids=["newer", "older"],
)
def test_a_store_of_another_revision_is_not_touched(operator: Operator, revision: str, mend: str) -> None:
    with sqlite3.connect(operator.data / "store.db") as connection:
        connection.execute("update alembic_version set version_num = ?", [revision])
    connection.close()

    said = operator.refused("user", "add", "bob@example.org")

    assert revision in said
    assert mend in said


def test_a_store_without_tables_says_what_makes_them(operator: Operator) -> None:
    (operator.data / "store.db").unlink()
    (operator.data / "store.db").touch()

    assert "vdserver up" in operator.refused("gpu", "list")


def test_a_file_that_is_no_store_leads_to_the_doctor(operator: Operator) -> None:
    (operator.data / "store.db").write_bytes(b"not a database, whatever it is" * 400)

    assert "vdserver doctor" in operator.refused("gpu", "list")


@pytest.mark.parametrize("command", QUESTIONS + DEEDS, ids=" ".join)
def test_every_command_works_while_a_server_holds_the_folder(
    operator: Operator, command: tuple[str, ...]
) -> None:
    with locked(Settings(data=operator.data)), operator.store():
        operator.do(*command)


@pytest.mark.parametrize("command", QUESTIONS, ids=" ".join)
def test_data_may_stand_behind_the_command(operator: Operator, command: tuple[str, ...]) -> None:
    folder, operator.data = operator.data, operator.data.parent / "nowhere"

    operator.do(*command, "--data", str(folder))


@pytest.mark.parametrize("command", [*QUESTIONS, ("doctor",)], ids=" ".join)
def test_json_has_nothing_but_json_on_stdout(operator: Operator, command: tuple[str, ...]) -> None:
    assert isinstance(operator.run(*command, "--json").json, list | dict)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_itself_within_the_width_of_a_terminal(
    operator: Operator, command: tuple[str, ...]
) -> None:
    text = operator.do(*command, "--help").out

    assert max(map(len, text.splitlines())) <= 80
    names_commands = "Commands:" in text
    assert names_commands or f"  vdserver {' '.join(command)}" in text.partition("Example")[2]


@pytest.mark.parametrize(
    ("command", "see"),
    [
        (["frob"], "vdserver --help"),
        (["gpu", "frob"], "vdserver gpu --help"),
        (["token", "new"], "vdserver token new --help"),
        (["token", "new", "a@b", "--frob"], "vdserver token new --help"),
        (["gpu", "price", "1"], "vdserver gpu price --help"),
        (["user", "add", "\udcff@example.org"], "not UTF-8"),
    ],
    ids=["command", "subcommand", "argument", "option", "last argument", "bytes"],
)
def test_a_wrong_command_line_is_told_in_one_line_and_exits_2(
    operator: Operator, command: list[str], see: str
) -> None:
    assert see in operator.refused(*command, code=2)


def test_no_command_at_all_shows_the_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2

    assert "doctor" in capsys.readouterr().err


def test_a_wrong_setting_is_told_in_one_line(operator: Operator) -> None:
    environment = os.environ | {"VECTORDASH_PORT": "none"}
    process = operator.start("gpu", "list", env=environment)
    out, err = process.communicate()

    assert (process.returncode, out) == (1, "")
    assert err.startswith("vdserver: A setting is wrong")


def test_a_reader_that_goes_away_is_no_error_to_be_told(operator: Operator) -> None:
    """As in `vdserver gpu list | head -1`, at its worst: nobody reads at all."""
    reading, writing = os.pipe()
    os.close(reading)
    process = operator.start("gpu", "list", stdout=writing)
    os.close(writing)
    _, err = process.communicate()

    assert (process.returncode, err) == (1, "")


def test_ctrl_c_ends_a_command_with_130_and_no_traceback(operator: Operator) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    operator.clock = interrupted
    ran = operator.run("token", "new", "ada@example.org")

    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


@pytest.mark.parametrize(
    ("command", "never"),
    [
        (["--help"], {"litestar", "granian", "asyncssh", "uvloop", "alembic", "sqlalchemy", "cryptography"}),
        (["token", "new", "ada@example.org"], {"litestar", "granian", "asyncssh", "uvloop", "alembic"}),
        (["gpu", "list"], {"litestar", "granian", "asyncssh", "uvloop", "alembic"}),
    ],
    ids=["help", "token new", "gpu list"],
)
def test_a_command_loads_only_what_it_needs(operator: Operator, command: list[str], never: set[str]) -> None:
    program = (
        "import sys; from vectordash.server.cli import run; code = run(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "--data", str(operator.data), *command],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "click" in ran.stderr.split()
    assert not never & set(ran.stderr.split())


def test_two_at_once_wait_for_each_other(operator: Operator) -> None:
    """The same account twice: one makes it, the other is told; two tokens: both are made."""
    accounts = [operator.start("user", "add", "bob@example.org") for _ in range(2)]
    tokens = [operator.start("token", "new", "ada@example.org") for _ in range(2)]
    said = [process.communicate() for process in accounts + tokens]

    assert sorted(process.returncode for process in accounts) == [0, 1]
    assert any("has an account already" in err for _, err in said[:2])
    assert [process.returncode for process in tokens] == [0, 0]
    assert len({out for out, _ in said[2:]}) == 2


def test_a_terminal_gets_heads_and_columns_and_a_pipe_gets_tabs(operator: Operator) -> None:
    seen = operator.see("gpu", "list")
    piped = operator.do("gpu", "list").out.splitlines()

    assert seen[0].split() == ["ID", "TYPE", "STATE", "PRICE", "UNTIL", "MACHINE", "NOTE"]
    assert len({line.index(word) for line, word in zip(seen, ["STATE", *["free"] * 3], strict=True)}) == 1
    assert piped[0] == "1\t1080 ti\tfree\t0.64\tunlimited\tm1\tsimulated"


@pytest.mark.parametrize("columns", [80, 100])
def test_long_rows_are_cut_on_a_terminal_and_whole_in_a_pipe(operator: Operator, columns: int) -> None:
    email = f"{'grace.' * 9}hopper@{'long.' * 20}example.org"
    operator.do("user", "add", email)

    seen = operator.see("user", "list", columns=columns)

    assert max(map(len, seen)) <= columns
    assert "…" in seen[2]
    assert operator.do("user", "list").rows[1][0] == email


def test_nothing_to_show_says_on_a_terminal_what_to_do(operator: Operator) -> None:
    assert operator.see("instance", "list")[0].endswith("vdserver instance list --all")
    assert operator.do("instance", "list").out == ""
    assert operator.do("instance", "list", "--json").json == []


def test_a_running_server_obeys_at_once(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    """A token works, a revoked one does not; a price is offered, an unlisted GPU is not."""
    server = servers.start()
    operator = Operator(server.data, capsys)
    gpu = server.environment["VECTORDASH_GPU"]
    demo, server.environment["VECTORDASH_TOKEN"] = (
        server.environment["VECTORDASH_TOKEN"],
        operator.do("token", "new", "demo@localhost").out.strip(),
    )
    operator.do("token", "revoke", "1")
    operator.do("gpu", "price", "all", "0.07")

    offers = server.call("GET", "/api/gpus").json["gpus"]
    assert server.call("GET", "/api/account").status == 200
    assert {offer["hourly_price"] for offer in offers} == {0.07}
    server.environment["VECTORDASH_TOKEN"] = demo
    assert server.call("GET", "/api/account").status == 401
    operator.do("gpu", "unlist", *[row[0] for row in operator.do("gpu", "list").rows if row[1] == gpu])
    assert gpu not in {offer["type"] for offer in server.call("GET", "/api/gpus").json["gpus"]}
    checks = {row[1]: row for row in operator.do("doctor").rows}
    assert checks["server"][0] == "ok"
    assert str(server.port) in checks["server"][2]


def test_the_folder_may_be_named_by_the_environment(operator: Operator, tmp_path: Path) -> None:
    environment = os.environ | {"VECTORDASH_DATA": str(operator.data)}
    ran = subprocess.run(
        [sys.executable, "-c", "from vectordash.server.cli import main; main()", "gpu", "list"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )

    assert len(ran.stdout.splitlines()) == 3
