"""What a renter does with a machine, with stock OpenSSH and what builds on it."""

import asyncio
import contextlib
import hashlib
import os
import pty
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from renting import Keys, Rented

pytestmark = pytest.mark.needs("bwrap", "ssh", "scp", "sftp", "rsync", "tmux", "ps")

Wait = Callable[..., None]

FREE = ">/dev/null 2>&1 </dev/null &"
"""What a shell's command must end with to let go of its session."""


class Screen:
    """A terminal with `ssh` in it, typed into and read like a person's."""

    def __init__(self, machine: Rented, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(80, 24)
        self.process = subprocess.Popen(
            machine.command(*words, options=("-tt",)),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(slave)
        self.shown = b""

    def resize(self, columns: int, rows: int) -> None:
        """Change the window's size."""
        termios.tcsetwinsize(self.master, (rows, columns))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the text is shown, and forget all up to it."""
        deadline = time.monotonic() + 10
        while text.encode() not in self.shown:
            assert select.select([self.master], [], [], deadline - time.monotonic())[0], self.shown
            self.shown += os.read(self.master, 65536)
        self.shown = self.shown.partition(text.encode())[2]


@contextlib.contextmanager
def screen(machine: Rented, *words: str) -> Iterator[Screen]:
    """Open a terminal with a login."""
    shown = Screen(machine, *words)
    try:
        yield shown
    finally:
        shown.process.kill()
        shown.process.wait()
        os.close(shown.master)


@pytest.fixture
def echo() -> Iterator[int]:
    """A server on this computer that sends everything back; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        while data := connection.recv(65536):
                            connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def forwarding(machine: Rented, *options: str) -> Iterator[None]:
    """Keep a connection that only forwards."""
    command = machine.command(options=("-N", "-o", "ExitOnForwardFailure=yes", *options))
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        yield
        process.kill()


def connect(port: int) -> socket.socket:
    """Connect to a port of this computer as soon as somebody listens."""
    for _ in range(200):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on {port}")


def comes_back(connection: socket.socket) -> bool:
    """Send a megabyte and compare what comes back."""
    data = os.urandom(1_000_000)

    def send() -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = b"".join(iter(lambda: connection.recv(65536), b""))
    sender.join()
    return received == data


# Commands


def test_a_command_has_its_output_errors_and_exit_code(either: Rented) -> None:
    done = either.ssh("echo out; echo err >&2; exit 7")

    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_a_command_reads_to_the_end_of_its_input(either: Rented) -> None:
    assert either.ssh("cat; echo end", input=b"a script\n").stdout == b"a script\nend\n"
    assert either.ssh("bash -s", input=b"echo $((6 * 7))\n").stdout == b"42\n"


def test_a_shell_without_a_terminal_runs_a_script(machine: Rented) -> None:
    done = subprocess.run(machine.command(), input=b"echo $0\nexit 3\n", capture_output=True, check=False)

    assert (done.stdout, done.returncode) == (b"-bash\n", 3)


def test_death_by_a_signal_is_told(either: Rented, keys: Keys) -> None:
    async def die() -> tuple[object, object]:
        async with asyncssh.connect(
            either.spec.address,
            either.spec.port,
            username="ubuntu",
            client_keys=[asyncssh.import_private_key(keys.pem)],
            known_hosts=([asyncssh.import_public_key(keys.host_public)], [], []),
            config=None,
        ) as connection:
            by_itself = await connection.run("kill -SEGV $$")
            process = await connection.create_process(
                "trap '' INT; echo up; sleep 9 & wait; wait; exec sleep 9"
            )
            await process.stdout.readline()
            process.send_signal("TERM")
            by_us = await process.wait()
            return by_itself.exit_signal, by_us.exit_signal

    by_itself, by_us = asyncio.run(die())

    assert isinstance(by_itself, tuple)
    assert isinstance(by_us, tuple)
    assert (by_itself[0], by_us[0]) == ("SEGV", "TERM")
    assert either.ssh("kill -9 $$").returncode == 255


def test_languages_are_taken_over_and_nothing_else(machine: Rented) -> None:
    options = ("-o", "SetEnv=LC_TEST=x LD_PRELOAD=y BASH_ENV=z")

    assert machine.out("echo $LC_TEST-$LD_PRELOAD-$BASH_ENV", options=options) == "x--\n"


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_hundred_megabytes_arrive_intact(either: Rented, tmp_path: Path, way: str) -> None:
    data = os.urandom(1_000_000) * 100
    if way == "up":
        said = either.ssh("sha256sum", input=data).stdout.split()[0].decode()
    else:
        either.ssh("cat > big", input=data)
        said = hashlib.sha256(either.ssh("cat big; rm big").stdout).hexdigest()

    assert said == hashlib.sha256(data).hexdigest()


def test_a_client_that_does_not_read_costs_no_memory(machine: Rented) -> None:
    machine.out("true")
    before = machine.memory()
    with subprocess.Popen(machine.command("cat /dev/zero"), stdout=subprocess.PIPE) as process:
        time.sleep(1)
        after = machine.memory()
        process.kill()

    assert after - before < 8_000


def test_ten_logins_at_once(machine: Rented) -> None:
    commands = [machine.command(f"sleep 0.2; echo {number}") for number in range(10)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]

    assert [process.communicate()[0] for process in running] == [b"%d\n" % number for number in range(10)]


# Files


def test_scp_copies_both_ways(either: Rented, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_bytes(os.urandom(300_000))
    (tree / "deep" / "file").chmod(0o741)
    for number, options in enumerate([("-r",), ("-r", "-O")]):
        either.tool("scp", *options, "-p", str(tree), f"machine:there{number}")
        either.tool("scp", *options, "-p", f"machine:there{number}", str(tmp_path / f"back{number}"))
        back = tmp_path / f"back{number}" / "deep" / "file"

        assert back.read_bytes() == (tree / "deep" / "file").read_bytes()
        assert back.stat().st_mode & 0o777 == 0o741


def test_sftp_runs_a_batch(either: Rented, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(os.urandom(100_000))
    steps = ["mkdir s", "cd s", f"put {tmp_path}/here", "rename here there", f"get there {tmp_path}/back"]
    steps += ["ls -l", "rm there", "cd ..", "rmdir s", "pwd", ""]

    done = either.tool("sftp", "-b", "-", "machine", input="\n".join(steps).encode())

    assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
    assert f"Remote working directory: {either.out('pwd')}".strip() in done.stdout.decode()


def test_rsync_copies_a_tree(machine: Rented, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / str(number)).write_bytes(os.urandom(10_000))

    for source, target in ((f"{tree}/", "machine:synced"), ("machine:synced/", f"{tmp_path}/back")):
        subprocess.run(["rsync", "-a", "-e", f"ssh -F {machine.config}", source, target], check=True)

    assert {file.name: file.read_bytes() for file in tree.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "back").iterdir()
    }


# Forwarding


def test_a_local_port_leads_to_the_machine(machine: Rented, echo: int, a_free_port: int) -> None:
    with forwarding(machine, "-L", f"{a_free_port}:127.0.0.1:{echo}"), connect(a_free_port) as connection:
        assert comes_back(connection)


def test_a_port_of_the_machine_leads_here(machine: Rented, echo: int, a_free_port: int) -> None:
    with forwarding(machine, "-R", f"{a_free_port}:127.0.0.1:{echo}"), connect(a_free_port) as connection:
        assert comes_back(connection)


def test_the_machine_is_a_proxy(machine: Rented, echo: int, a_free_port: int) -> None:
    with forwarding(machine, "-D", str(a_free_port)), connect(a_free_port) as connection:
        connection.sendall(b"\x05\x01\x00")
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + echo.to_bytes(2, "big"))
        assert connection.recv(10)[:2] == b"\x05\x00"

        assert comes_back(connection)


def test_the_agent_comes_along(machine: Rented, tmp_path: Path) -> None:
    agent = {"SSH_AUTH_SOCK": str(tmp_path / "agent")}
    with subprocess.Popen(
        ["ssh-agent", "-D", "-a", agent["SSH_AUTH_SOCK"]], stdout=subprocess.DEVNULL
    ) as process:
        while not (tmp_path / "agent").exists():
            time.sleep(0.01)
        environ = os.environ | agent
        subprocess.run(
            ["ssh-add", "-q", machine.config.parent / "pem"], env=environ, check=True, capture_output=True
        )
        here = subprocess.run(
            ["ssh-add", "-l"], env=environ, check=True, capture_output=True, text=True
        ).stdout

        there = machine.out("ssh-add -l", options=("-A",), env=environ)
        process.terminate()

    assert there == here


# Terminals


def test_a_shell_greets_and_has_the_windows_size(either: Rented) -> None:
    with screen(either) as shown:
        shown.wait_for("brave-otter: no GPU")
        shown.type("stty size; tty; echo $TERM $-\n")
        shown.wait_for("\r24 80\r\n")
        shown.wait_for("/dev/pts/")
        shown.wait_for("xterm him")

        shown.resize(132, 50)
        shown.process.send_signal(signal.SIGWINCH)
        time.sleep(0.2)
        shown.type("stty size\n")
        shown.wait_for("\r50 132\r\n")
        shown.type("exit 5\n")

        assert shown.process.wait(timeout=5) == 5


def test_without_a_sandbox_the_shell_says_so(plain: Rented, machine: Rented) -> None:
    with screen(plain) as shown:
        shown.wait_for("There is no sandbox")
    with screen(machine) as shown:
        shown.wait_for("$")
        assert b"no sandbox" not in shown.shown


def test_interrupting_a_command_leaves_the_shell(either: Rented) -> None:
    with screen(either) as shown:
        shown.type("sleep 100; echo code=$?\n")
        shown.wait_for("code=")
        time.sleep(0.3)
        shown.type("\x03")
        time.sleep(0.1)
        shown.type("echo still $((40 + 2))\n")
        shown.wait_for("still 42")


def test_all_output_of_a_terminal_arrives(machine: Rented) -> None:
    done = machine.ssh("seq 200000", options=("-tt",))

    assert done.stdout.split()[-1] == b"200000"
    assert len(done.stdout.split()) == 200_000


def test_the_clients_terminal_modes_are_taken_over(machine: Rented) -> None:
    with screen(machine) as shown:
        shown.type("stty -a\n")
        shown.wait_for("iutf8")
        shown.type("exit\n")


# What stays


def test_what_was_left_running_is_there_at_the_next_login(either: Rented, eventually: Wait) -> None:
    either.out(f"nohup sleep 71 {FREE}")
    either.out(f"setsid sleep 72 {FREE}")

    assert len(either.out("pgrep -fx 'sleep 7[12]'").split()) == 2
    either.out("pkill -fx 'sleep 7[12]'")


def test_tmux_is_attached_again(machine: Rented) -> None:
    machine.out("tmux new-session -d -s work 'echo inside; sleep 100'")

    assert machine.ssh("tmux has-session -t work").returncode == 0
    with screen(machine, "tmux attach -t work") as shown:
        shown.wait_for("inside")
        shown.type("\x02d")
        shown.wait_for("detached")
    machine.out("tmux kill-server")


def test_a_terminal_whose_client_is_gone_hangs_up(either: Rented, eventually: Wait) -> None:
    with screen(either, "echo up; exec sleep 73") as shown:
        shown.wait_for("up")

    eventually(lambda: either.ssh("pgrep -fx 'sleep 73'").returncode == 1)


def test_a_command_whose_client_is_gone_sees_the_end_of_its_input(either: Rented, eventually: Wait) -> None:
    with subprocess.Popen(
        either.command("echo up; cat; touch ended"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()

    eventually(lambda: either.ssh("rm ended").returncode == 0)
