"""`vdserver up`: start the cloud, and keep it up until told to stop."""

import os

import click

from vectordash import __version__
from vectordash.server.api.serving import listen
from vectordash.server.app import ControlPlane
from vectordash.server.cli import demo, output
from vectordash.server.cli.folder import locked, settings_of
from vectordash.server.cli.running import Running, begin, demand_loopback
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.drivers.local.sandbox import NoSandbox, Sandbox
from vectordash.server.instances import oversight
from vectordash.server.machines.store import all_gpus
from vectordash.wire.errors import Unavailable


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
    demand_loopback(settings)
    with locked(settings):
        listener = listen(settings.host, settings.port)
        went_well = begin(
            Running(settings, "up", listener, reconciles=True, ready=_greet, ended=_say_goodbye)
        )
    return output.DONE if went_well else output.FAILED


def _greet(plane: ControlPlane) -> None:
    """Say what is offered, what protects it, and what to do next."""
    (cluster,) = plane.reconciler.clusters
    settings = plane.settings
    environment = demo.prepare(plane.store, plane.clock, settings)
    lines = [
        f"Vectordash {__version__} serves {settings.base_url}",
        f"  GPUs     {_offered(plane)}",
        f"  data     {settings.data.resolve()}" + (", and PostgreSQL" if settings.database else ""),
        *(_of_local(cluster.driver) if isinstance(cluster.driver, LocalDriver) else ()),
    ]
    if environment is not None:
        lines.append(f"  try it   . {environment}   (then the lines of README.md)")
    lines.append("  Ctrl-C stops the server; instances go on.")
    output.say("\n".join(lines))


def _offered(plane: ControlPlane) -> str:
    listed = [gpu for gpu in plane.store.ask(all_gpus) if gpu.listed and gpu.present]
    if not listed:
        return "none; see `vdserver gpu list`"
    made_up = " (made up: simulated)" if all(gpu.simulated for gpu in listed) else ""
    return ", ".join(f"{gpu.type} at {gpu.price:.2f}" for gpu in listed) + made_up


def _of_local(driver: LocalDriver) -> tuple[str, str]:
    return (
        f"  sandbox  {_describe(driver.sandbox)}",
        "  limits   none on cores, RAM and disk; `ssh -L` reaches this computer's loopback: for trials only",
    )


def _describe(sandbox: Sandbox | NoSandbox) -> str:
    if isinstance(sandbox, NoSandbox):
        who = "root, with all of this computer" if os.geteuid() == 0 else "you, with all your files"
        return f"NONE ({sandbox.reason}): whoever rents is {who}. Install bubblewrap to change that"
    return "bubblewrap: instances see no files and processes but their own; all share the network"


def _say_goodbye(plane: ControlPlane) -> None:
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
    said = f"Stopped. {many} ({names}). To end them: start the server again and DELETE them"
    if not plane.settings.database:
        said += f", or delete {plane.settings.data.resolve()}, which ends them all within seconds"
    output.say(f"{said}.")
