"""A pseudo-terminal as an SSH client asks for it: its size, and its modes (RFC 4254, section 8)."""

import contextlib
import os
import termios
from collections.abc import Mapping
from dataclasses import dataclass

import asyncssh

_CHARACTERS = {
    **{getattr(asyncssh, f"PTY_{name}"): getattr(termios, name) for name in ("VINTR", "VQUIT", "VERASE")},
    **{
        getattr(asyncssh, f"PTY_{name}"): getattr(termios, name)
        for name in ("VKILL", "VEOF", "VEOL", "VEOL2")
    },
    **{getattr(asyncssh, f"PTY_{name}"): getattr(termios, name) for name in ("VSTART", "VSTOP", "VSUSP")},
    asyncssh.PTY_VREPRINT: termios.VREPRINT,
    asyncssh.PTY_WERASE: termios.VWERASE,
    asyncssh.PTY_VLNEXT: termios.VLNEXT,
    asyncssh.PTY_VDISCARD: termios.VDISCARD,
}
_FLAGS = (
    (
        0,
        (
            "IGNPAR",
            "PARMRK",
            "INPCK",
            "ISTRIP",
            "INLCR",
            "IGNCR",
            "ICRNL",
            "IXON",
            "IXANY",
            "IXOFF",
            "IMAXBEL",
        ),
    ),
    (1, ("OPOST", "ONLCR", "OCRNL", "ONOCR", "ONLRET")),
    (
        3,
        (
            "ISIG",
            "ICANON",
            "ECHO",
            "ECHOE",
            "ECHOK",
            "ECHONL",
            "NOFLSH",
            "TOSTOP",
            "IEXTEN",
            "ECHOCTL",
            "ECHOKE",
        ),
    ),
)
"""Names by their place in what `tcgetattr` returns."""
_IUTF8 = 0o40000
"""Erase whole characters of UTF-8; Python's termios has no name for it."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """An open pseudo-terminal; `master` never blocks."""

    master: int
    slave: int
    path: str

    def resize(self, columns: int, rows: int) -> None:
        """Set the size; the programs in it get SIGWINCH."""
        with contextlib.suppress(OSError, OverflowError):
            termios.tcsetwinsize(self.master, (rows, columns))


def open_terminal(columns: int, rows: int, modes: Mapping[int, int]) -> Terminal:
    """Open a terminal of that size and with those modes."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    terminal = Terminal(master, slave, os.ttyname(slave))
    _set_modes(slave, modes)
    terminal.resize(columns, rows)
    return terminal


def _set_modes(slave: int, modes: Mapping[int, int]) -> None:
    attributes = termios.tcgetattr(slave)
    attributes[0] |= _IUTF8
    for place, names in _FLAGS:
        for name in names:
            flag = getattr(termios, name)
            if (wanted := modes.get(getattr(asyncssh, f"PTY_{name}"))) is not None:
                attributes[place] = attributes[place] | flag if wanted else attributes[place] & ~flag
    for mode, index in _CHARACTERS.items():
        if (wanted := modes.get(mode)) is not None:
            # 255 is the protocol's word for "off", whose byte is 0 here.
            attributes[6][index] = bytes([0 if wanted == 255 else wanted & 255])
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
