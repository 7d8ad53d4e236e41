"""News between processes on PostgreSQL; on SQLite there is nobody to tell."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from databases import Database, Postgres
from vectordash.server.db.news import DUE, News
from vectordash.server.db.session import Store

pytestmark = [pytest.mark.asyncio, pytest.mark.needs("postgres")]


@asynccontextmanager
async def listening(store: Store) -> AsyncIterator[tuple[News, "asyncio.Queue[str]"]]:
    """Have a process that hears and says, once it hears."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    news = News(store, heard.put_nowait)
    running = asyncio.create_task(news.run())
    try:
        yield news, heard
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def next_word(heard: "asyncio.Queue[str]") -> str:
    async with asyncio.timeout(10):
        return await heard.get()


async def test_what_one_says_the_other_hears(tmp_path: Path, postgres_server: Postgres) -> None:
    database = Database("postgresql", postgres_server)
    url = database.settings(tmp_path).store_url
    one_store, other_store = Store(url, readers=1), Store(url, readers=1)
    async with listening(one_store) as (one, one_heard), listening(other_store) as (_, other_heard):
        # Whoever begins to listen looks once: it may have missed something.
        assert await next_word(one_heard) == DUE
        assert await next_word(other_heard) == DUE

        one.say("3f9a0c")
        one.say("3f9a0c")
        one.say(DUE)

        assert {await next_word(other_heard), await next_word(other_heard)} == {"3f9a0c", DUE}
        assert other_heard.empty()
        assert one_heard.empty(), "nobody hears what it said itself"
    one_store.close()
    other_store.close()
    database.forget()


async def test_a_listener_whose_connection_was_cut_listens_again(
    tmp_path: Path, postgres_server: Postgres
) -> None:
    database = Database("postgresql", postgres_server)
    settings = database.settings(tmp_path)
    store, speaker = Store(settings.store_url, readers=1), Store(settings.store_url, readers=1)
    async with listening(store) as (_, heard), listening(speaker) as (other, _):
        assert await next_word(heard) == DUE
        with psycopg.connect(settings.database, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'vdserver news' and datname = current_database()"
            )

        assert await next_word(heard) == DUE, "it looks again, for what it may have missed"
        other.say("3f9a0c")
        assert await next_word(heard) == "3f9a0c"
    store.close()
    speaker.close()
    database.forget()


async def test_on_sqlite_there_is_nobody_to_tell(tmp_path: Path) -> None:
    store = Store(Database("sqlite").settings(tmp_path / "data").store_url)
    async with listening(store) as (news, heard):
        news.say(DUE)
        async with asyncio.timeout(5):
            await news.run()

        assert heard.empty()
    store.close()
