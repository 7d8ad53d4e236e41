"""Starting and reaping the processes of one instance.

The program of an instance is process 1 of its sandbox, or a subreaper without one: whatever a renter's
processes leave behind becomes its child. So it reaps every child there is and must itself start none in
another way (asyncio's subprocesses would lose their exit codes to us).
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FileAction = tuple[int, int, int] | tuple[int, int, str, int, int]


@dataclass(frozen=True, slots=True)
class Child:
    """A process that we started."""

    pid: int
    ended: asyncio.Future[int]
    """Its status, as `wait` tells it."""


class Children:
    """Starts processes, and reaps those and any other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._started: dict[int, asyncio.Future[int]] = {}
        loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def start(
        self, path: str, argv: list[str], environ: Mapping[str, str], files: Sequence[FileAction]
    ) -> Child:
        """Start a process as the leader of a session of its own, with the signals as a login leaves them.

        A terminal that `files` opens is its controlling terminal.
        """
        pid = os.posix_spawn(
            path,
            argv,
            environ,
            file_actions=files,
            setsid=True,
            setsigmask=(),
            # What is ignored is inherited: SIGPIPE by Python, SIGINT by us, SIGHUP where the server runs
            # under nohup.
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
        child = Child(pid, self._loop.create_future())
        self._started[pid] = child.ended
        return child

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._started.pop(pid, None)
            if ended is not None and not ended.done():
                ended.set_result(status)
