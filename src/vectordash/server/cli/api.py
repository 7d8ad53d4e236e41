"""`vdserver api`: the API by itself, as often as wanted; reconcilers do the rest."""

import click

from vectordash import __version__
from vectordash.server.api.serving import listen
from vectordash.server.app import ControlPlane
from vectordash.server.cli import output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import data_option, settings_of
from vectordash.server.cli.running import Running, begin, demand_loopback, demand_shared


@click.command(epilog=example("vdserver api --port 8001"))
@click.option("--host", metavar="ADDRESS", help="Listen on this address.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Listen on this port.  [default: 8000]")
@data_option
@click.pass_context
def command(context: click.Context, host: str | None, port: int | None) -> int:
    """Serve the API alone, beside others; on PostgreSQL.

    Start as many as you like, each on a port of its own, behind a proxy that knows them all. All need the
    same VECTORDASH_DATABASE and VECTORDASH_ENCRYPTION_KEYS (or the same file `encryption.key`), and at least
    one `vdserver reconciler`.
    """
    settings = settings_of(context, host=host, port=port)
    demand_shared(settings, "api")
    demand_loopback(settings)
    listener = listen(settings.host, settings.port)
    went_well = begin(Running(settings, "api", listener, reconciles=False, ready=_greet, ended=_say_goodbye))
    return output.DONE if went_well else output.FAILED


def _greet(plane: ControlPlane) -> None:
    output.say(f"Vectordash {__version__} serves {plane.settings.base_url}, process {plane.presence.id}")


def _say_goodbye(_plane: ControlPlane) -> None:
    output.say("Stopped. Other processes and instances go on.")
