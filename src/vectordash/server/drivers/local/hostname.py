"""A hostname of its own, for an instance without a sandbox (bubblewrap sets one for those within).

A namespace of names is root's to make. An ordinary user makes a namespace of users first, in which only the
own uid exists, as itself: it is root over nothing but that. Where the system allows neither, the name stays
the computer's.
"""

import ctypes
import os
import socket
from pathlib import Path

_CLONE_NEWUTS = 0x04000000
_CLONE_NEWUSER = 0x10000000


def set_hostname(name: str) -> None:
    """Name this process and all that it starts. Only before there are threads. Raises `OSError`."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _unshare(_CLONE_NEWUTS)
    else:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWUTS)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    socket.sethostname(name)


def _unshare(flags: int) -> None:
    """As `os.unshare`, which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
