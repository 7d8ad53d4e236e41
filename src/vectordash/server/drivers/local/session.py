"""One session of a login: a shell or a command, with a terminal or with pipes, or SFTP or SCP.

It behaves as OpenSSH's does, down to the awkward parts: a command without a terminal ends for the client
when its output is closed by all that hold it; with one, when the command ends. A client that leaves closes
pipes or terminal, and what is in them hears of it as the kernel tells it (EOF, SIGPIPE, SIGHUP). Nothing is
read faster than the other side takes it.
"""

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Self

import asyncssh

from vectordash.server.drivers.local import pipes
from vectordash.server.drivers.local.children import Child, Children, FileAction
from vectordash.server.drivers.local.terminal import Terminal, open_terminal

_SFTP_VERSION = 3
_CANNOT = 126
"""The exit code of a command that could not be started, as shells have it."""
_SIGNALS = {number.name.removeprefix("SIG"): number for number in signal.Signals}
_NAMES = {int(number): name for name, number in _SIGNALS.items()}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the sessions of an instance share."""

    children: Children
    environ: dict[str, str]
    greeting: str


class Files(asyncssh.SFTPServer):
    """The files of the instance, over SFTP, as the user that we are."""

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file, but no pipe or socket: to wait for its other end would stop the whole machine."""
        with contextlib.suppress(OSError):
            kind = os.stat(self.map_path(path)).st_mode  # noqa: PTH116 - bytes
            if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
                raise asyncssh.SFTPFailure("A pipe or socket cannot be transferred.")
        return super().open(path, pflags, attrs)

    def exit(self) -> None:
        """End with success; without it, `scp` takes the end of a good copy for a failure."""
        self.channel.exit(0)


class Session(asyncssh.SSHServerProcess[bytes]):
    """A session. Signals and sizes reach the process at once, not behind the data under way."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(self._serve, _files, _SFTP_VERSION, allow_scp=True)
        self._machine = machine
        self._process: Child | None = None
        self._terminal: Terminal | None = None

    def subsystem_requested(self, subsystem: str) -> bool:
        """Offer SFTP and nothing else."""
        return subsystem == "sftp"

    def terminal_size_changed(self, width: int, height: int, *_: int) -> None:
        """Pass a new size on."""
        if self._terminal is not None:
            self._terminal.resize(width, height)

    def signal_received(self, signal: str) -> None:
        """Pass a signal on to the command and what it started."""
        number = _SIGNALS.get(signal)
        if number is not None and self._process is not None and not self._process.ended.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def break_received(self, *_: object) -> bool:
        """Ignore a break: there is no serial line."""
        return True

    async def _serve(self, _: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run the session to its end."""
        try:
            await (
                self._run_with_pipes() if self.term_type is None else self._run_in_terminal(self.term_type)
            )
        except OSError as error:
            with contextlib.suppress(OSError):
                self.stderr.write(f"The machine cannot start a process: {error}\r\n".encode())
                self.exit(_CANNOT)

    async def _run_in_terminal(self, kind: str) -> None:
        with _Descriptors() as open_:
            terminal = open_terminal(*self.term_size[:2], self.term_modes)
            open_.add(terminal.master, terminal.slave)
            if self.command is None:
                self.stdout.write(f"{self._machine.greeting}\r\n".encode())
            slave = (os.POSIX_SPAWN_OPEN, 0, terminal.path, os.O_RDWR, 0)
            child = self._start({"TERM": kind, "SSH_TTY": terminal.path}, [slave, _copy(0, 1), _copy(0, 2)])
            open_.close(terminal.slave)
            self._terminal = terminal
            try:
                await self._until(
                    _end(child), self._feed(terminal.master), self._show(terminal.master, self.stdout)
                )
            finally:
                self._terminal = None
            await self._show_rest(terminal.master)
        self._tell_end(child)

    async def _run_with_pipes(self) -> None:
        with _Descriptors() as open_:
            (stdin, feed), (show, stdout), (show_error, stderr) = (open_.pipe() for _ in range(3))
            for ours in (feed, show, show_error):
                os.set_blocking(ours, False)
            child = self._start({}, [_copy(stdin, 0), _copy(stdout, 1), _copy(stderr, 2)])
            open_.close(stdin, stdout, stderr)
            output = (self._show(show, self.stdout), self._show(show_error, self.stderr))
            await self._until(_end(child, *output), self._feed(feed, lambda: open_.close(feed)))
        self._tell_end(child)

    def _start(self, environ: dict[str, str], files: Sequence[FileAction]) -> Child:
        shell = self._machine.environ["SHELL"]
        name = PurePath(shell).name
        argv = [f"-{name}"] if self.command is None else [name, "-c", self.command]
        self._process = self._machine.children.start(shell, argv, self._environ() | environ, files)
        return self._process

    def _environ(self) -> dict[str, str]:
        """Make the environment: the machine's, the client's language, and what OpenSSH adds."""
        environ = dict(self._machine.environ)
        sent = self.channel.get_environment().items()
        environ |= {name: value for name, value in sent if name == "LANG" or name.startswith("LC_")}
        there, here = self.channel.get_extra_info("peername"), self.channel.get_extra_info("sockname")
        if there and here:
            environ["SSH_CLIENT"] = f"{there[0]} {there[1]} {here[1]}"
            environ["SSH_CONNECTION"] = f"{there[0]} {there[1]} {here[0]} {here[1]}"
        if agent := self.channel.get_agent_path():
            environ["SSH_AUTH_SOCK"] = agent
        return environ

    async def _until(self, end: Coroutine[Any, Any, None], *work: Coroutine[Any, Any, None]) -> None:
        """Do the work until the end comes or the client is gone, and see that none of it goes on."""
        ends = [asyncio.create_task(each) for each in (end, self.channel.wait_closed())]
        tasks = [*ends, *(asyncio.create_task(each) for each in work)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self, fd: int, at_end: Callable[[], None] | None = None) -> None:
        """Carry the client's data to the process; a process that takes no more leaves the rest untouched."""
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await self.stdin.read(pipes.CHUNK):
                await pipes.write(fd, data)
        if at_end is not None:
            at_end()

    async def _show(self, fd: int, writer: asyncssh.SSHWriter[bytes]) -> None:
        """Carry the process's output to the client, no faster than that takes it."""
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await pipes.read(fd):
                writer.write(data)
                await writer.drain()
                # One loud session may not keep the others waiting.
                await asyncio.sleep(0)

    async def _show_rest(self, fd: int) -> None:
        """Show what a terminal still holds after its command's end."""
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := pipes.rest(fd):
                self.stdout.write(data)
                await self.stdout.drain()

    def _tell_end(self, child: Child) -> None:
        """Tell the client how it ended, unless it left before."""
        if not child.ended.done():
            return
        status = child.ended.result()
        number = os.WTERMSIG(status)
        if not os.WIFSIGNALED(status):
            self.exit(os.WEXITSTATUS(status))
        elif number in _NAMES:
            self.exit_with_signal(_NAMES[number], os.WCOREDUMP(status))
        else:
            self.exit(128 + number)


def _files(channel: Any) -> Files:
    """Make the SFTP server of a session, whose channel asyncssh types as any kind of one."""
    return Files(channel)


async def _end(child: Child, *output: Coroutine[Any, Any, None]) -> None:
    """Wait for the end of the output and of the process itself."""
    await asyncio.gather(*output)
    await asyncio.wait((child.ended,))


def _copy(source: int, target: int) -> FileAction:
    return os.POSIX_SPAWN_DUP2, source, target


@dataclass
class _Descriptors:
    """Open descriptors, each closed exactly once."""

    _open: set[int] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(*self._open)

    def add(self, *descriptors: int) -> None:
        self._open.update(descriptors)

    def pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self.add(*ends)
        return ends

    def close(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            if descriptor in self._open:
                self._open.discard(descriptor)
                os.close(descriptor)
