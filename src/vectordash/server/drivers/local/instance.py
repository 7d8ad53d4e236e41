"""The program of one instance: an SSH server, and the first process of all that its renter runs.

Started by `driver.py` as `python -m vectordash.server.drivers.local.instance`, in a sandbox or as it is. It
reads its orders, says one word, and from then on needs nobody: the server that started it may end, be
killed or be replaced. It ends when it is killed, or when its folder has vanished, and takes everything with
it. Imports are few, since a renter waits for them.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TextIO

import asyncssh

from vectordash.server.drivers.local.children import Children
from vectordash.server.drivers.local.hostname import set_hostname
from vectordash.server.drivers.local.orders import MARK, VERSION, Orders, Word, encode
from vectordash.server.drivers.local.orders import orders as read_orders
from vectordash.server.drivers.local.session import Machine, Session

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_DUMPABLE = 4
_LOG_LIMIT = 262_144
"""Characters of log in the life of an instance: it lies on the host's disk, and strangers can cause it."""


class Server(asyncssh.SSHServer):
    """Who may log in, and what for: the one user, by key, for everything that a machine is used for."""

    def __init__(self, orders: Orders, keys: asyncssh.SSHAuthorizedKeys, machine: Machine) -> None:
        self._orders = orders
        self._keys = keys
        self._machine = machine
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Note the connection, whose keys depend on who asks."""
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        """Let nobody in without a key, and only the one user with one."""
        if username == self._orders.user and self._connection is not None:
            self._connection.set_authorized_keys(self._keys)
        return True

    def public_key_auth_supported(self) -> bool:
        """Ask for a key, whoever it is, so that all refusals look the same."""
        return True

    def session_requested(self) -> Session:
        """Open a session."""
        return Session(self._machine)

    def connection_requested(self, *_: object) -> bool:
        """Forward to wherever the machine can connect to (`-L`, `-D`)."""
        return True

    def server_requested(self, *_: object) -> bool:
        """Listen for the client (`-R`)."""
        return True

    def unix_connection_requested(self, *_: object) -> bool:
        """Forward to a socket in the file system."""
        return True

    def unix_server_requested(self, *_: object) -> bool:
        """Listen on a socket in the file system."""
        return True


def main() -> None:
    """Run the instance to its end."""
    # First of all: what a renter starts may hold neither the lock that says we live, nor our socket.
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - numbers, no paths
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, descriptor <= sys.stderr.fileno())
    orders = read_orders(sys.stdin.buffer.read())
    if orders.version != VERSION:
        sys.exit(f"orders of version {orders.version}, understood is {VERSION}")
    _settle(orders)
    asyncio.run(_live(orders))


def _settle(orders: Orders) -> None:
    """Become what a login finds: at home, with sane defaults, and the parent of all that is left behind."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, sys.stdin.fileno())
    os.close(null)
    os.chdir(orders.home)
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # When memory runs out, a renter's machine goes before the server does.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    if orders.sandboxed:
        # Its renter is its own user: no look into its memory, its environment or its descriptors.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    else:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with contextlib.suppress(OSError):
            set_hostname(orders.hostname)
    logging.basicConfig(level=logging.WARNING, handlers=[_ShortLog()])


async def _live(orders: Orders) -> None:
    """Serve for as long as the folder is there; a deleted one has no links left, wherever it is seen from."""
    try:
        await _listen(orders)
    except (OSError, ValueError, asyncssh.Error) as error:
        _answer(orders, Word("failed", str(error)[:500] or type(error).__name__))
        raise
    _answer(orders, Word("ready"))
    home = os.open(os.curdir, os.O_PATH | os.O_CLOEXEC)
    while os.fstat(home).st_nlink:  # noqa: ASYNC110 - a folder's deletion is no event of the loop
        await asyncio.sleep(1)
    if not orders.sandboxed:
        from vectordash.server.drivers.local import processes  # noqa: PLC0415 - wanted once, at the end

        processes.kill(os.environ[MARK], spare=os.getpid())
    os._exit(0)


async def _listen(orders: Orders) -> None:
    loop = asyncio.get_running_loop()
    machine = Machine(Children(loop), orders.environ, orders.greeting)
    keys = asyncssh.import_authorized_keys("".join(f"{line}\n" for line in orders.authorized_keys))
    await asyncssh.listen(
        sock=socket.socket(fileno=orders.listener),
        server_factory=lambda: Server(orders, keys, machine),
        server_host_keys=[asyncssh.import_private_key(orders.host_key)],
        server_version="Vectordash",
        encoding=None,
        line_editor=False,
        agent_forwarding=True,
        x11_forwarding=False,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        keepalive_interval=60,
        keepalive_count_max=10,
    )


def _answer(orders: Orders, word: Word) -> None:
    """Say the one word. Nobody may be there to hear it any more, and that is no reason to end."""
    with contextlib.suppress(OSError):
        os.write(orders.answer, encode(word))
    os.close(orders.answer)


class _ShortLog(logging.StreamHandler[TextIO]):
    """Writes to standard error until there is too much of it."""

    def __init__(self) -> None:
        super().__init__()
        self._left = _LOG_LIMIT

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        self._left -= len(text)
        return text

    def emit(self, record: logging.LogRecord) -> None:
        if self._left > 0:
            super().emit(record)


if __name__ == "__main__":
    main()
