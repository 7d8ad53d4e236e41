"""That nobody uses a store: what commands ask for that change it as a whole."""

import time

from vectordash.server.db.migrate import revision
from vectordash.server.db.presence import BURIED, Process, all_processes
from vectordash.server.db.session import Store
from vectordash.server.trouble import Trouble

_WITH_PROCESSES = "0002"
"""The revision that brought the table of processes."""


def demand_unused(store: Store, command: str) -> None:
    """Refuse while a process uses a store in PostgreSQL; watches for some seconds if one may."""
    if (store.ask(revision) or "") >= _WITH_PROCESSES and (alive := _alive(store)):
        named = ", ".join(f"{one.kind} on {one.host} (process {one.pid})" for one in alive)
        raise Trouble(f"These use the store: {named}. Stop them, then: {command}")


def _alive(store: Store) -> list[Process]:
    """Watch the processes for a while; gives those whose hearts beat."""
    before = {one.id: one.beaten_at for one in store.ask(all_processes)}
    if before:
        time.sleep(BURIED)
    return [one for one in store.ask(all_processes) if one.beaten_at != before.get(one.id)]
