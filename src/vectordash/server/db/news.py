"""News between processes: a word said in one is heard in all others, at once as a rule, by LISTEN and NOTIFY.

Said after the change that it tells of, and apart from it: to notify inside a transaction would make all
that notify commit one after the other. News may be lost, and nothing depends on it: whoever listens also
looks by itself now and then. On SQLite there is nobody to tell.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
from sqlalchemy import Connection, text

from vectordash.server.db.postgres import NETWORK
from vectordash.server.db.session import Store
from vectordash.wire.errors import Unavailable

log = logging.getLogger(__name__)

DUE = "due"
"""Something is to be done for an instance."""
_CHANNEL = "vectordash"
_PAUSE = 1.0
"""Seconds until a lost connection is made again."""


def _notify(connection: Connection, words: list[str]) -> None:
    tell = text("select pg_notify(:channel, word) from unnest(cast(:words as text[])) word")
    connection.execute(tell, {"channel": _CHANNEL, "words": words})


@dataclass(slots=True)
class News:
    """What this process says and hears. A word is `DUE` or an instance's key that something happened to."""

    store: Store
    hear: Callable[[str], None]
    _own: str = field(default_factory=lambda: secrets.token_hex(4))
    _unsaid: set[str] = field(default_factory=set)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, word: str) -> None:
        """Tell the others, soon; what is said twice before is told once."""
        if self.store.shared:
            self._unsaid.add(word)
            self._woken.set()

    async def run(self) -> None:
        """Say and hear until cancelled. Returns at once where there is nobody to tell."""
        if self.store.shared:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._speak())
                both.create_task(self._listen())

    async def _speak(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            words, self._unsaid = self._unsaid, set()
            try:
                await self.store.write(_notify, [f"{self._own} {word}" for word in sorted(words)])
            except Unavailable as error:
                log.info("news was not told: %s", error)
            except Exception:  # nothing depends on a word, least of all the server
                log.exception("news was not told")
                await asyncio.sleep(_PAUSE)

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear_all()
            except psycopg.Error as error:
                log.info("no news is heard: %s", " ".join(str(error).split()))
            except Exception:  # likewise
                log.exception("no news is heard")
            await asyncio.sleep(_PAUSE)

    async def _hear_all(self) -> None:
        url = self.store.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, application_name="vdserver news", **NETWORK
        )
        async with connection:
            await connection.execute(f"listen {_CHANNEL}")
            self.hear(DUE)  # whatever was said while nobody listened
            async for heard in connection.notifies():
                self._tell(heard.payload)

    def _tell(self, payload: str) -> None:
        speaker, _, word = payload.partition(" ")
        if speaker != self._own:
            self.hear(word)
