"""`vdserver reconciler`: what keeps instances as they should be, by itself; as often as wanted."""

import click

from vectordash import __version__
from vectordash.server.app import ControlPlane
from vectordash.server.cli import output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import data_option, settings_of
from vectordash.server.cli.running import Running, begin, demand_shared


@click.command(epilog=example("vdserver reconciler"))
@data_option
@click.pass_context
def command(context: click.Context) -> int:
    """Keep instances as they should be, beside others; on PostgreSQL.

    Start two, and one goes on when the other ends: what a dead one had in hand is taken up within seconds.
    All need the same VECTORDASH_DATABASE, VECTORDASH_CLUSTER and encryption key.
    """
    settings = settings_of(context)
    demand_shared(settings, "reconciler")
    went_well = begin(
        Running(settings, "reconciler", None, reconciles=True, ready=_greet, ended=_say_goodbye)
    )
    return output.DONE if went_well else output.FAILED


def _greet(plane: ControlPlane) -> None:
    names = ", ".join(cluster.name for cluster in plane.reconciler.clusters)
    output.say(f"Vectordash {__version__} keeps the cluster {names}, process {plane.presence.id}")


def _say_goodbye(_plane: ControlPlane) -> None:
    output.say("Stopped. Other processes and instances go on.")
