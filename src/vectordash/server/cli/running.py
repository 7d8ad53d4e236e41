"""What `vdserver up`, `api` and `reconciler` share: parts that run side by side until told to stop.

A signal ends it in good order: requests in flight are answered, work is given up cleanly and left to others.
What does not end within ten seconds is cut off, which loses nothing: it is what a kill -9 at any line does.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vectordash.server import app, logs
from vectordash.server.api.serving import serve
from vectordash.server.api.upkeep import keep_up
from vectordash.server.app import ControlPlane
from vectordash.server.clock import BootClock
from vectordash.server.db.presence import Presence
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Driver
from vectordash.server.drivers.fake.served import ServedFake
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.settings import Settings
from vectordash.server.trouble import Trouble
from vectordash.server.vault import Vault

log = logging.getLogger(__name__)

_LOOK_AT_CLOCK = 10.0
_DRIFT = 2.0
"""Seconds."""
_LOOK_AT_FOLDER = 1.0
"""Seconds between two looks at whether the data folder is still there."""
_CUT_OFF = 9.5
"""Seconds after the signal."""


@dataclass(frozen=True, slots=True)
class Running:
    """What is to run, with what it needs."""

    settings: Settings
    kind: Literal["up", "api", "reconciler"]
    listener: socket.socket | None
    """Where the API is served, if it is."""
    reconciles: bool
    """Whether the cluster is kept as it should be."""
    ready: Callable[[ControlPlane], None]
    ended: Callable[[ControlPlane], None]


def begin(running: Running) -> bool:
    """Run until told to stop; False if something ended that the process cannot do without."""
    logs.set_up(running.settings)
    _raise_open_files()
    store = app.open_store(running.settings)
    import uvloop  # noqa: PLC0415 - here and only here a loop is started

    return uvloop.run(_run(running, store))


def demand_loopback(settings: Settings) -> None:
    """Refuse to let the world in: over plain HTTP, and to processes of this very computer."""
    if settings.loopback:
        return
    why = (
        "the instances of this cloud run on this very computer (driver `local`): that is for trials"
        if settings.cluster == "local"
        else "tokens and keys would travel as plain HTTP; have a proxy with TLS listen there"
    )
    raise Trouble(f"Listening on {settings.host} is refused: {why}. Listen on 127.0.0.1.")


def demand_shared(settings: Settings, command: str) -> None:
    """Refuse a part of the cloud by itself where one process must do everything."""
    if not settings.database:
        raise Trouble(
            f"`vdserver {command}` runs beside other processes, and SQLite's file is for a single one: "
            "`vdserver up` does everything in one. To share a store, set VECTORDASH_DATABASE to PostgreSQL."
        )


def _driver_of(settings: Settings, keys: Vault) -> Driver:
    """Make the driver of the cluster that the settings name."""
    kind, _, where = settings.cluster.partition(":")
    if kind == "fake":
        return ServedFake(Path(where))
    return LocalDriver(settings.data / "local", simulate=settings.simulate, vault=keys)


def _raise_open_files() -> None:
    """Allow as many open files as may be: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _run(running: Running, store: Store) -> bool:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop() -> None:
        if not stop.is_set():
            # A thread's, since the loop itself may be what does not come to an end.
            timer = threading.Timer(_CUT_OFF, _cut_off)
            timer.daemon = True
            timer.start()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told_to_stop)
    plane = await _build(running, store)
    beside = [asyncio.create_task(work) for work in _beside(running, plane)]
    for task in beside:
        task.add_done_callback(lambda _: stop.set())
    try:
        if running.listener is None:
            running.ready(plane)
            await stop.wait()
        else:
            await serve(
                plane.app,
                running.settings,
                running.listener,
                stop=stop,
                ready=lambda: running.ready(plane),
                draining=plane.services.instances.waiters.tell_all,
            )
    finally:
        ended = [task for task in beside if task.done()]
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        for task in ended:
            # It would take rentals and start none, or lose what it writes.
            log.error("the server cannot go on", exc_info=task.exception())
        await plane.presence.leave()
        running.ended(plane)
        await plane.close()
    return not ended


async def _build(running: Running, store: Store) -> ControlPlane:
    settings = running.settings
    keys = app.open_vault(settings, store)
    clock = app.clock_of(store)
    presence = Presence(store, clock, running.kind)
    presence.enter()
    clusters = []
    if running.reconciles:
        driver = _driver_of(settings, keys)
        clusters.append(await app.join(store, clock, driver.kind, driver, settings.port_range))
    return app.build(settings, store, keys, clusters, clock, presence)


def _beside(running: Running, plane: ControlPlane) -> Iterator[Coroutine[Any, Any, None]]:
    """What runs beside the API until the end; if one ends by itself, all does."""
    if plane.store.shared:
        yield plane.presence.run()
        yield plane.news.run()
    else:
        yield _watch_folder(running.settings.data)
    if running.listener is not None:
        yield keep_up(plane.services)
    if running.reconciles:
        yield plane.reconciler.run()
    if isinstance(plane.clock, BootClock):
        yield _watch_clock(plane.clock)


def _cut_off() -> None:
    log.error("not everything came to an end in time: cut off; nothing is lost")
    os._exit(1)


async def _watch_folder(data: Path) -> None:
    """Return when the data folder is deleted: nothing can be kept any more."""
    was = (data / "store.db").stat().st_ino
    while True:
        await asyncio.sleep(_LOOK_AT_FOLDER)
        try:
            there = (data / "store.db").stat().st_ino == was
        except OSError:  # deleted, or no longer ours to see
            there = False
        if not there:
            log.error("the data folder %s was deleted: stopping; its instances end by themselves", data)
            return


async def _watch_clock(clock: BootClock) -> None:
    """Tell when this computer's clock is off ours, which goes on as it was at the start."""
    told = 0.0
    while True:
        await asyncio.sleep(_LOOK_AT_CLOCK)
        if abs((drift := clock.drift()) - told) > _DRIFT:
            log.warning("this computer's clock is %.0f s off the time that this server goes by", drift)
            told = drift
