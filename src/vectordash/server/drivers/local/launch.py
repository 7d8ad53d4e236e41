"""Starting the program of an instance, up to the moment when it is on its own. Blocks; called in a thread.

The order matters, for we may be killed after any line. The folder comes whole or not at all. The lock is
inherited by the new process at its birth and ours ends with us, so no moment exists at which the instance
lives unseen. The listening socket is bound before, so a busy port is known at once, and a login that comes
early waits in its queue instead of being refused.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vectordash.server.drivers.base import PortBusy, Spec, StartFailed
from vectordash.server.drivers.local import processes
from vectordash.server.drivers.local.folder import Place
from vectordash.server.drivers.local.gpus import Card
from vectordash.server.drivers.local.orders import MARK, Orders, encode
from vectordash.server.drivers.local.sandbox import (
    USER,
    NoSandbox,
    Sandbox,
    python,
    python_environ,
    shell,
)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LARGEST = 1_048_576
"""Bytes of orders that fit into a pipe at once; about 1,500 keys."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A program that was started and has not spoken yet."""

    place: Place
    pidfd: int
    answer: int
    """The pipe with its word."""


def launch(
    spec: Spec, place: Place, cards: Sequence[Card], sandbox: Sandbox | NoSandbox, mark: str
) -> Launch | None:
    """Start the program of an instance; None if it runs already."""
    place.make(sandbox.owner if isinstance(sandbox, Sandbox) else None)
    if not place.home.is_dir():
        raise StartFailed("its disk is gone")
    place.home.chmod(0o750)  # whatever its renter did to it: the program has to get in
    if place.running() or (alive := place.take()) is None:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, alive)
        # Without a sandbox, what its renter ran may have outlived the program itself.
        processes.kill(mark)
        listener = stack.enter_context(_listen(spec))
        place.give(spec)
        answer, word = os.pipe()
        stack.callback(os.close, word)
        start = _Start(spec, place, cards, sandbox, mark)
        try:
            stdin = stack.enter_context(_filled(encode(start.orders(listener.fileno(), word))))
            pidfd = start.spawn(stdin, alive, (listener.fileno(), word))
        except BaseException:
            os.close(answer)
            raise
    return Launch(place, pidfd, answer)


@dataclass(frozen=True, slots=True)
class _Start:
    """One start, and what is needed for it."""

    spec: Spec
    place: Place
    cards: Sequence[Card]
    sandbox: Sandbox | NoSandbox
    mark: str

    def orders(self, listener: int, answer: int) -> Orders:
        """Write what the program must know."""
        return Orders(
            user=USER,
            host_key=self.spec.host_key,
            authorized_keys=list(self.spec.authorized_keys),
            hostname=self.spec.hostname,
            home=str(self._home()),
            environ=self._environ(),
            greeting=self._greeting(),
            sandboxed=isinstance(self.sandbox, Sandbox),
            listener=listener,
            answer=answer,
        )

    def spawn(self, stdin: BinaryIO, alive: int, descriptors: Sequence[int]) -> int:
        """Start it, detached, with the lock in its hands, and return a pidfd of it."""
        # Bubblewrap keeps one copy of the lock itself, outside, and hands the other through to the program.
        inner = os.dup(alive)
        try:
            with self.place.log.open("wb") as log:
                process = subprocess.Popen(
                    self._command(alive),
                    env=python_environ() | {MARK: self.mark},
                    cwd="/",
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    pass_fds=(alive, inner, *descriptors),
                    start_new_session=True,
                )
        except OSError as error:
            raise StartFailed(
                f"the program of the instance cannot be run: {error}", transient=True
            ) from error
        finally:
            os.close(inner)
        # It is reaped by its pidfd, or not by us at all; this keeps Popen from waiting or warning.
        process.returncode = 0
        return os.pidfd_open(process.pid)

    def _command(self, alive: int) -> list[str]:
        # The mark is the program's argument, too: its environment may be nobody's to read.
        program = [*python(), "-m", "vectordash.server.drivers.local.instance", self.mark]
        if isinstance(self.sandbox, NoSandbox):
            return program
        devices = [card.device for card in self.cards if card.device is not None]
        self.sandbox.furnish(self.place.etc, self.spec.hostname)
        return self.sandbox.command(
            self.place.home, self.place.etc, self.spec.hostname, devices, alive, program
        )

    def _home(self) -> Path:
        """Tell where the home is for those inside."""
        return self.sandbox.home if isinstance(self.sandbox, Sandbox) else self.place.home

    def _environ(self) -> dict[str, str]:
        """Make the environment of shells; without a sandbox, the mark is what they are found by."""
        sandboxed = isinstance(self.sandbox, Sandbox)
        user = USER if sandboxed else _our_name()
        return {
            "HOME": str(self._home()),
            "USER": user,
            "LOGNAME": user,
            "SHELL": shell(),
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": ",".join(self.spec.gpus),
            **({} if sandboxed else {MARK: self.mark}),
        }

    def _greeting(self) -> str:
        models = ", ".join(card.seen.model + " (simulated)" * card.seen.simulated for card in self.cards)
        line = f"{self.spec.hostname}: {models or 'no GPU'}, on {socket.gethostname()}."
        if isinstance(self.sandbox, NoSandbox):
            line += f" There is no sandbox: you are its user {_our_name()}."
        return line


def _listen(spec: Spec) -> socket.socket:
    """Bind the port of the instance; who connects before it serves has to wait, no more."""
    family = socket.AF_INET6 if ":" in spec.address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((spec.address, spec.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(spec.port) from error
        raise StartFailed(f"cannot listen on {spec.address}, port {spec.port}: {error.strerror}") from error
    return listener


def _filled(data: bytes) -> BinaryIO:
    """Make a pipe that holds the orders, to the end: nothing is left to be written after the start."""
    if len(data) > _LARGEST:
        raise StartFailed("there are too many keys")
    read, write = os.pipe()
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, max(len(data), 65536))
        os.write(write, data)
    finally:
        os.close(write)
    return os.fdopen(read, "rb")


def _our_name() -> str:
    """Tell who the server runs as; a container's user may have no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
