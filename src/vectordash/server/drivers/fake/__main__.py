"""A fake cluster as a process: `python -m vectordash.server.drivers.fake SOCKET`.

It says one line when it listens. SIGTERM and SIGINT end it; what ran in it is gone then.
"""

import asyncio
import dataclasses
import signal
from pathlib import Path
from random import Random

import click

from vectordash.server.drivers.base import SeenMachine
from vectordash.server.drivers.fake.chance import ShakyFake
from vectordash.server.drivers.fake.driver import FakeDriver, simple_machine
from vectordash.server.drivers.fake.served import serving
from vectordash.server.trouble import Trouble

_MODEL = "NVIDIA GeForce GTX 1080 Ti"


@click.command()
@click.argument("path", metavar="SOCKET", type=click.Path(path_type=Path))
@click.option("--machines", default=1, show_default=True, type=click.IntRange(1, 60_000), help="How many.")
@click.option("--gpus", default=4, show_default=True, type=click.IntRange(0), help="How many each has.")
@click.option(
    "--faults",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="The share of ensure, login, remove and instance calls that go wrong.",
)
@click.option("--delay", default=0.0, show_default=True, type=click.FloatRange(0), help="Seconds of a call.")
@click.option("--seed", default=0, show_default=True, help="Of what goes wrong.")
@click.option("--name", default="fake-1", show_default=True, help="The identity of the cluster.")
def main(path: Path, machines: int, gpus: int, faults: float, delay: float, seed: int, name: str) -> None:
    """Serve a fake cluster on a Unix socket."""
    inventory = [_machine(number, gpus) for number in range(1, machines + 1)]
    chance = Random(seed)  # noqa: S311 - nothing secret
    cluster = ShakyFake(inventory, name, share=faults, delay=delay, chance=chance)
    try:
        asyncio.run(_serve(cluster, path))
    except Trouble as error:
        raise click.ClickException(str(error)) from error


async def _serve(cluster: FakeDriver, path: Path) -> None:
    """Serve until we are told to end."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with serving(cluster, path):
        click.echo(f"The fake cluster {cluster.name} listens on {path}")
        await told.wait()


def _machine(number: int, gpus: int) -> SeenMachine:
    """Describe a machine with a loopback address of its own."""
    address = f"127.1.{number >> 8}.{number & 255}"
    return dataclasses.replace(simple_machine(f"m{number}", *[_MODEL] * gpus), address=address)


if __name__ == "__main__":
    main()
