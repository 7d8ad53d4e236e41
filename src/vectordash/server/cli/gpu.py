"""`vdserver gpu`: which GPUs there are, and what is offered of them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeVar

import click

from vectordash.server.cli import output
from vectordash.server.cli.arguments import Dollars, Duration, GpuId, Until, chosen, example
from vectordash.server.cli.folder import clock_of, data_option, opened, settings_of
from vectordash.server.clock import UNLIMITED, as_written
from vectordash.server.db.session import Store
from vectordash.server.instances import oversight
from vectordash.server.machines import listing
from vectordash.server.machines import store as machines
from vectordash.server.machines.listing import Done, state
from vectordash.server.machines.store import GpuRow

F = TypeVar("F", bound=Callable[..., Any])
Ids = tuple[int | Literal["all"], ...]

_HEADS = ("id", "type", "state", "price", "until", "machine", "note")
_NONE = "No GPU is known yet. They are found by: vdserver up"


def _ids(command: F) -> F:
    return click.argument("ids", nargs=-1, required=True, type=GpuId())(command)


@click.group()
def command() -> None:
    """GPUs: list, price, availability, what is offered.

    Every command takes GPUs by their ids, or `all`, and shows those as they are then.
    """


@command.command(
    "list",
    epilog=example(
        "vdserver gpu list",
        "vdserver gpu list 1 2 --price 0.64 --until 2027-01-01",
        "vdserver gpu list all --price 0.64",
    ),
)
@click.argument("ids", nargs=-1, type=GpuId())
@click.option("--price", type=Dollars(), help="Dollars an hour.")
@click.option(
    "--until", type=Until("unlimited"), metavar="DATE", help="Promise them until then, or `unlimited`."
)
@output.json_option
@data_option
@click.pass_context
def list_gpus(
    context: click.Context, ids: Ids, *, price: Decimal | None, until: datetime | None, as_json: bool
) -> None:
    """Show all GPUs or, with ids, put those on the market.

    Columns: id, type, state, dollars an hour, available until (UTC), machine, note. The state is free,
    rented, reserved, suspect (something failed on it; the note says what), unlisted (not offered) or absent
    (its machine is offline or does not report it).
    """
    if ids:
        _do(context, ids, listing.offer, as_json=as_json, price=price, until=until)
        return
    if price is not None or until is not None:
        raise click.UsageError("Which GPUs? Name their ids, or all", context)
    with opened(context) as store:
        _show(context, store, store.ask(machines.all_gpus), as_json=as_json)


@command.command("unlist", epilog=example("vdserver gpu unlist 2"))
@_ids
@output.json_option
@data_option
@click.pass_context
def unlist(context: click.Context, ids: Ids, *, as_json: bool) -> None:
    """Take GPUs off the market. Who has rented one keeps it."""
    _do(context, ids, listing.withdraw, as_json=as_json)


@command.command("price", epilog=example("vdserver gpu price 1 2 0.64", "vdserver gpu price all 0"))
@_ids
@click.argument("dollars", type=Dollars())
@output.json_option
@data_option
@click.pass_context
def price(context: click.Context, ids: Ids, dollars: Decimal, *, as_json: bool) -> None:
    """Set what an hour costs, from the next rental on: the last argument, at most two decimals."""
    _do(context, ids, listing.set_price, dollars, as_json=as_json)


@command.command(
    "availability",
    epilog=example("vdserver gpu availability 1 2 2027-01-01", "vdserver gpu availability all unlimited"),
)
@_ids
@click.argument("until", type=Until("unlimited"), metavar="DATE|unlimited")
@output.json_option
@data_option
@click.pass_context
def availability(context: click.Context, ids: Ids, until: datetime, *, as_json: bool) -> None:
    """Set until when GPUs are promised, from the next rental on: the last argument.

    A date is its first second (UTC); “YYYY-MM-DD HH:MM:SS”, 12h and 30d are taken too.
    """
    _do(context, ids, listing.set_availability, until, as_json=as_json)


@command.command(
    "reserve", epilog=example("vdserver gpu reserve 1 --for 3h", "vdserver gpu reserve 1 --release")
)
@_ids
@click.option("--for", "length", type=Duration(), metavar="DURATION", help="90m, 3h, 30d.")
@click.option("--until", type=Until(), metavar="DATE", help="YYYY-MM-DD, or “YYYY-MM-DD HH:MM:SS” (UTC).")
@click.option("--release", is_flag=True, help="End the reservation now.")
@output.json_option
@data_option
@click.pass_context
def reserve(
    context: click.Context,
    ids: Ids,
    *,
    length: timedelta | None,
    until: datetime | None,
    release: bool,
    as_json: bool,
) -> None:
    """Keep GPUs for yourself for a while: nobody can rent them until then."""
    if [length is not None, until is not None, release].count(True) != 1:
        raise click.UsageError("Say for how long: one of --for 3h, --until DATE, --release", context)
    if release:
        _do(context, ids, listing.unreserve, as_json=as_json)
        return
    now = clock_of(context)()
    _do(
        context, ids, listing.reserve, until or min(now + (length or timedelta()), UNLIMITED), as_json=as_json
    )


@command.command("clear", epilog=example("vdserver gpu clear 2"))
@_ids
@output.json_option
@data_option
@click.pass_context
def clear(context: click.Context, ids: Ids, *, as_json: bool) -> None:
    """Trust suspect GPUs again, without waiting until each was seen well.

    Says so where something else still keeps one from being offered.
    """
    _do(context, ids, listing.clear, as_json=as_json)


def _do(
    context: click.Context,
    ids: Ids,
    deed: Callable[..., Done],
    *values: object,
    as_json: bool,
    **options: object,
) -> None:
    """Do a deed of the operator's, and show what came of it."""
    now = clock_of(context)()
    with opened(context) as store:
        done = store.change(deed, now, chosen(ids), *values, **options)
        for remark in done.remarks:
            output.say(remark)
        _show(context, store, done.gpus, as_json=as_json)


def _show(context: click.Context, store: Store, gpus: Sequence[GpuRow], *, as_json: bool) -> None:
    now = clock_of(context)()
    holders = store.ask(oversight.holders)
    soon = now + timedelta(hours=settings_of(context).least_hours)
    notes = {gpu.id: _note(gpu, now, soon, holders) for gpu in gpus}
    if as_json:
        output.give_json([_plain(gpu, now, notes[gpu.id], holders.get(gpu.id)) for gpu in gpus])
        return
    rows = [
        (
            gpu.id,
            gpu.type,
            state(gpu, now),
            f"{gpu.price:.2f}",
            gpu.available_until,
            gpu.machine,
            notes[gpu.id],
        )
        for gpu in gpus
    ]
    output.give_table(_HEADS, rows, empty=_NONE, keep=("id", "until"))


def _note(gpu: GpuRow, now: datetime, soon: datetime, holders: Mapping[int, str]) -> str:
    """Say what stands behind the state, or why a free GPU is not offered all the same."""
    word = state(gpu, now)
    if word == "suspect":
        return gpu.suspect_why
    if word == "rented":
        return f"to {holders.get(gpu.id, 'nobody that is known')}"
    if word == "reserved" and gpu.reserved_until is not None:
        return f"until {as_written(gpu.reserved_until)}"
    if word == "free" and gpu.available_until < soon:
        return "not offered: it ends too soon"
    return "simulated" if gpu.simulated else ""


def _plain(gpu: GpuRow, now: datetime, note: str, instance: str | None) -> dict[str, object]:
    return {
        "id": gpu.id,
        "type": gpu.type,
        "state": state(gpu, now),
        "hourly_price": gpu.price,
        "max_availability": as_written(gpu.available_until),
        "listed": gpu.listed,
        "reserved_until": gpu.reserved_until,
        "suspect": gpu.suspect_why or None,
        "instance": instance,
        "machine": gpu.machine,
        "model": gpu.model,
        "simulated": gpu.simulated,
        "note": note,
    }
