"""`vdserver up`: start the cloud, and keep it up until told to stop."""

import asyncio
import logging
import os
import resource
import signal
import socket
from pathlib import Path

import click

from vectordash import __version__
from vectordash.server import app, logs
from vectordash.server.api.serving import listen, serve
from vectordash.server.app import ControlPlane
from vectordash.server.cli import demo, output
from vectordash.server.cli.folder import locked, settings_of
from vectordash.server.clock import BootClock
from vectordash.server.db.session import Store
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.drivers.local.sandbox import NoSandbox, Sandbox
from vectordash.server.instances import leases, oversight
from vectordash.server.machines.store import all_gpus
from vectordash.server.settings import Settings
from vectordash.server.trouble import Trouble
from vectordash.server.vault import Vault
from vectordash.wire.errors import Unavailable

log = logging.getLogger(__name__)

_LOOK_AT_CLOCK = 10.0
_DRIFT = 2.0
"""Seconds."""
_LOOK_AT_FOLDER = 1.0
"""Seconds between two looks at whether the data folder is still there."""


@click.command()
@click.option("--host", metavar="ADDRESS", help="Listen on this address.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Listen on this port.  [default: 8000]")
@click.option("--data", metavar="FOLDER", help="Keep everything here.  [default: .vectordash]")
@click.option(
    "--simulate", is_flag=True, default=None, help="Offer made-up GPUs, even if there are real ones."
)
@click.pass_context
def command(
    context: click.Context, host: str | None, port: int | None, data: str | None, simulate: bool | None
) -> int:
    """Start the cloud: the API, and what keeps instances running.

    On the first start it makes a demo account, offers the GPUs of this computer (made-up ones if it has
    none), and writes `demo.env` into the data folder. Ctrl-C stops it; instances go on.
    """
    given: dict[str, object] = {"host": host, "port": port, "simulate": simulate}
    settings = settings_of(context, **given | ({"data": data} if data else {}))
    _demand_loopback(settings)
    with locked(settings):
        listener = listen(settings.host, settings.port)
        logs.set_up(settings)
        _raise_open_files()
        store = app.open_store(settings)
        keys = app.open_vault(settings, store)
        store.change(leases.break_leases)
        driver = LocalDriver(settings.data / "local", simulate=settings.simulate)
        import uvloop  # noqa: PLC0415 - here and only here a loop is started

        went_well = uvloop.run(_up(settings, listener, store, keys, driver))
    return output.DONE if went_well else output.FAILED


def _raise_open_files() -> None:
    """Allow as many open files as may be: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _demand_loopback(settings: Settings) -> None:
    if not settings.loopback:
        raise Trouble(
            f"Listening on {settings.host} is refused: the instances of this cloud run on this very computer "
            "(driver `local`), which is for trying things out. Listen on 127.0.0.1."
        )


async def _up(
    settings: Settings, listener: socket.socket, store: Store, keys: Vault, driver: LocalDriver
) -> bool:
    """Serve until told to stop; False if something ended that the server cannot do without."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    clock = BootClock()
    cluster = await app.join(store, clock, "local", driver, settings.port_range)
    plane = app.build(settings, store, keys, [cluster], clock)
    environment = demo.prepare(store, clock, settings)
    beside = [
        asyncio.create_task(work)
        for work in (plane.reconciler.run(), _watch_folder(settings.data), _watch_clock(clock))
    ]
    for task in beside:
        task.add_done_callback(lambda _: stop.set())
    try:
        await serve(
            plane.app,
            settings,
            listener,
            stop=stop,
            ready=lambda: _greet(settings, store, driver, environment),
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
        _say_goodbye(settings, plane)
        await plane.close()
    return not ended


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
    """Tell when somebody has set the computer's clock: ours goes on as it was until the next start."""
    told = 0.0
    while True:
        await asyncio.sleep(_LOOK_AT_CLOCK)
        if abs((drift := clock.drift()) - told) > _DRIFT:
            log.warning("the clock was set: it is %.0f s off the time that this server goes by", drift)
            told = drift


def _greet(settings: Settings, store: Store, driver: LocalDriver, environment: Path | None) -> None:
    """Say what is offered, what protects it, and what to do next."""
    cards = store.ask(all_gpus)
    listed = [gpu for gpu in cards if gpu.listed and gpu.present]
    made_up = " (made up: simulated)" if listed and all(gpu.simulated for gpu in listed) else ""
    offered = ", ".join(f"{gpu.type} at {gpu.price:.2f}" for gpu in listed) or "none; see `vdserver gpu list`"
    lines = [
        f"Vectordash {__version__} serves {settings.base_url}",
        f"  GPUs     {offered}{made_up}",
        f"  data     {settings.data.resolve()}",
        f"  sandbox  {_describe(driver.sandbox)}",
        "  limits   none on cores, RAM and disk; `ssh -L` reaches this computer's loopback: for trials only",
    ]
    if environment is not None:
        lines.append(f"  try it   . {environment}   (then the lines of README.md)")
    lines.append("  Ctrl-C stops the server; instances go on.")
    output.say("\n".join(lines))


def _describe(sandbox: Sandbox | NoSandbox) -> str:
    if isinstance(sandbox, NoSandbox):
        who = "root, with all of this computer" if os.geteuid() == 0 else "you, with all your files"
        return f"NONE ({sandbox.reason}): whoever rents is {who}. Install bubblewrap to change that"
    return "bubblewrap: instances see no files and processes but their own; all share the network"


def _say_goodbye(settings: Settings, plane: ControlPlane) -> None:
    """Say what still runs, and how to end it."""
    try:
        running = plane.store.ask(oversight.overview)
    except Unavailable:
        return
    if not running:
        output.say("Stopped. No instance runs.")
        return
    names = ", ".join(one.name for one in running[:5]) + (", …" if len(running) > 5 else "")
    many = f"{len(running)} instances still run" if len(running) > 1 else "1 instance still runs"
    output.say(
        f"Stopped. {many} ({names}). To end them: start the server again and DELETE them, or delete "
        f"{settings.data.resolve()}, which ends them all within seconds."
    )
