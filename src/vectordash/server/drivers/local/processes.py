"""Finding and ending the processes of an instance.

A process is an instance's if its environment carries the instance's mark (or its arguments, where nobody
may read the environment), or if it descends from one that does. In a sandbox that is bubblewrap and
everything below it; without one, the program is a subreaper, so what its renters detach stays below it.
There is no file of process ids that could go stale. Signals go through pidfds, and to the process that was
seen, never to another that got its number since.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vectordash.server.drivers.base import DriverError
from vectordash.server.drivers.local.orders import MARK

_PATIENCE = 10.0
"""Seconds in which what was killed must be gone; longer, and it hangs in the kernel."""


@dataclass(frozen=True, slots=True)
class Process:
    """A living process, as it was seen."""

    pid: int
    started: int
    """Clock ticks after boot: with the pid, unique."""
    parent: int = field(compare=False)


def mark(name: str, identity: str) -> str:
    """Make the mark of an instance."""
    return f"{name}@{identity}"


def alive(value: str) -> bool:
    """Tell whether a process carries the mark."""
    return any(_carries(pid, value) for pid in _living())


def adopt(value: str) -> int | None:
    """Open a pidfd of an instance's first process, whose end is the end of the instance."""
    for process in family(value):
        pidfd = _open(process)
        if pidfd is not None:
            return pidfd
    return None


def kill(value: str, *, spare: int | None = None) -> None:
    """End every process of an instance and return once none is left; the caller, if it is one, is spared.

    All are frozen before any is ended, from the leaves up: none forks away meanwhile, and none loses the
    parent by which it is found. One that is about to end shows no mark any more, but is waited for.
    """
    deadline = time.monotonic() + _PATIENCE
    known: set[Process] = set()
    while (members := _freeze(value, spare, deadline)) or known:
        known.update(members)
        _send(reversed(members), signal.SIGKILL)
        time.sleep(0.002)
        known = {process for process in known if _look(process.pid) == process}
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in known)
            raise DriverError(f"these processes of {value} do not end: {pids}")


def family(value: str, spare: int | None = None) -> list[Process]:
    """List the living processes of an instance but one, parents before their children."""
    living = _living()
    depth = {pid: 0 for pid in living if _carries(pid, value)}
    for pid in living:
        lineage = [pid]
        while lineage[-1] not in depth and (above := living.get(lineage[-1])) is not None:
            lineage.append(above.parent)
        if (top := depth.get(lineage[-1])) is not None:
            depth.update({each: top + rank for rank, each in enumerate(reversed(lineage))})
    return [living[pid] for pid in sorted(depth, key=depth.__getitem__) if pid != spare]


def _freeze(value: str, spare: int | None, deadline: float) -> list[Process]:
    """Stop all processes of an instance, until no new ones appear, and list them."""
    frozen: set[Process] = set()
    while (fresh := set(members := family(value, spare)) - frozen) and time.monotonic() < deadline:
        _send(fresh, signal.SIGSTOP)
        frozen |= fresh
    return members


def _living() -> dict[int, Process]:
    found = (_look(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208 - numbers
    return {process.pid: process for process in found if process is not None}


def _look(pid: int) -> Process | None:
    """Look at a process; a zombie only waits for its parent and does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in {b"Z", b"X"} else Process(pid, int(fields[19]), int(fields[1]))


def _carries(pid: int, value: str) -> bool:
    """Another user's process is not ours, and one that has just ended is no longer.

    Nor is one inside a sandbox, where a renter may set any mark; but the sandbox's own first process is.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
        # Its number in our namespace of processes, and in each below it.
        numbers = _field(status, b"NSpid")
        if len(numbers) > 1 and numbers[1:] != [b"1"]:
            return False
        return value.encode() in _marks(pid, _field(status, b"Uid"))
    except OSError:
        return False


def _marks(pid: int, uids: list[bytes]) -> list[bytes]:
    """What may be a mark: in the environment or, of our own that shows none to us either, the arguments."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except PermissionError:
        if int(uids[0]) != os.geteuid():
            return []
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    prefix = f"{MARK}=".encode()
    return [entry.removeprefix(prefix) for entry in environ if entry.startswith(prefix)]


def _field(status: bytes, name: bytes) -> list[bytes]:
    return status.partition(b"\n" + name + b":")[2].partition(b"\n")[0].split()


def _open(process: Process) -> int | None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if _look(process.pid) == process:
        return pidfd
    os.close(pidfd)
    return None


def _send(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        if (pidfd := _open(process)) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, number)
            os.close(pidfd)
