"""Who waits for an instance to stop being pending (`GET …?wait=`), without a thread or a connection each.

The reconciler tells at once what it changed in this process; for what other processes changed, one question
for all waiters is asked now and then. At the end of the server all are answered with what there is.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vectordash.server.db.session import Store
from vectordash.server.instances import store as rows


@dataclass(slots=True)
class Waiters:
    """Those who wait, by instance."""

    store: Store
    _events: dict[str, set[asyncio.Event]] = field(default_factory=lambda: defaultdict(set))
    _closing: bool = False

    @contextmanager
    def waiting(self, key: str) -> Iterator[Callable[[float], Awaitable[bool]]]:
        """Register; the given function waits for news, and says False once there will be none in time."""
        event = asyncio.Event()
        if self._closing:
            event.set()
        self._events[key].add(event)

        async def news(seconds: float) -> bool:
            try:
                async with asyncio.timeout(seconds):
                    await event.wait()
            except TimeoutError:
                return False
            event.clear()
            return not self._closing

        try:
            yield news
        finally:
            self._events[key].discard(event)
            if not self._events[key]:
                del self._events[key]

    def tell(self, key: str) -> None:
        """Wake those who wait for this instance."""
        for event in self._events.get(key, ()):
            event.set()

    def tell_all(self) -> None:
        """Wake everybody, now and from now on: the server stops."""
        self._closing = True
        for key in list(self._events):
            self.tell(key)

    async def look(self) -> None:
        """Wake those whose instance is no longer pending: one question for all."""
        keys = set(self._events)
        if keys:
            for key in keys - await self.store.read(rows.unchanged, keys):
                self.tell(key)
