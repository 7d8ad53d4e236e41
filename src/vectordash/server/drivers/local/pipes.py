"""Reading and writing of pipes and terminals that never blocks the loop.

asyncio's own streams lose a terminal's last output (its end is an error, EIO, which overtakes what is
buffered) and close descriptors at moments of their choosing.
"""

import asyncio
import os
from collections.abc import Callable

CHUNK = 65536


async def read(fd: int) -> bytes:
    """Read what is there, waiting for the first of it; nothing is the end."""
    while True:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(fd, loop.add_reader, loop.remove_reader)
        except OSError:
            return b""


def rest(fd: int) -> bytes:
    """Read what is there now."""
    try:
        return os.read(fd, CHUNK)
    except OSError:
        return b""


async def write(fd: int, data: bytes) -> None:
    """Write all of it, as fast as the other side takes it; raises `OSError` if that is gone."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(fd, loop.add_writer, loop.remove_writer)


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
