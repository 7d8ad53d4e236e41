"""`vdserver instance`: the instances of everybody, with their whole history."""

from collections.abc import Iterator
from decimal import Decimal

import click

from vectordash.server.cli import output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import clock_of, data_option, opened, settings_of
from vectordash.server.cli.orphans import adopt, orphans, purge
from vectordash.server.clock import as_written, how_long
from vectordash.server.db.session import Store
from vectordash.server.instances import oversight
from vectordash.server.instances.charge import Use, charge
from vectordash.server.instances.lifecycle import status
from vectordash.server.instances.oversight import History, Overview, Tried
from vectordash.server.instances.reclaim import reclaim
from vectordash.server.machines.store import all_orphans
from vectordash.wire.errors import BadRequest

_SHOWN = 5
"""Keys that are named where a name is not clear."""


@click.group()
def command() -> None:
    """Instances of everybody, with their whole history."""


for _each in (orphans, adopt, purge):
    command.add_command(_each)


@command.command("list", epilog=example("vdserver instance list", "vdserver instance list --all --json"))
@click.option("--all", "ended", is_flag=True, help="Show those that have ended, too.")
@output.json_option
@data_option
@click.pass_context
def list_instances(context: click.Context, *, ended: bool, as_json: bool) -> None:
    """Show what is rented, newest first.

    Columns: key, name, status (pending, active, complete), GPU, dollars so far, note (why it ended, or since
    when it is out of sight, UTC), renter.
    """
    with opened(context) as store:
        found = store.ask(oversight.overview, ended=ended)
        strange = store.ask(all_orphans)
    if strange:
        output.say(f"{len(strange)} that this store does not know run, too: vdserver instance orphans")
    if as_json:
        output.give_json([_summary(context, one) for one in found])
        return
    rows = [
        (
            one.key,
            one.name,
            status(one.active_at, one.ended_at),
            f"{one.gpu_id} {one.gpu_type}",
            f"{_charge(context, one)[1]:.2f}",
            _note(one),
            one.email,
        )
        for one in found
    ]
    heads = ("key", "name", "status", "gpu", "charge", "note", "renter")
    output.give_table(
        heads,
        rows,
        empty="Nothing is rented. Ended ones are shown by: vdserver instance list --all",
        keep=("key", "charge"),
    )


@command.command(
    "show", epilog=example("vdserver instance show brave-otter", "vdserver instance show 3f9a0c")
)
@click.argument("key", metavar="KEY|NAME")
@output.json_option
@data_option
@click.pass_context
def show(context: click.Context, key: str, *, as_json: bool) -> None:
    """Show everything of one instance, ended or not: every attempt, every event. Times are UTC."""
    with opened(context) as store:
        one = _find(store, key)
        past = store.ask(oversight.history, one.key)
    if as_json:
        output.give_json(_summary(context, one) | _details(past))
        return
    output.give_fields(list(_fields(context, one, past)))
    output.give("")
    heads = ("attempt", "gpu", "machine", "port", "name", "what became of it")
    rows = [
        (tried.number, tried.gpu_id, tried.machine, tried.port, tried.driver_name, _fate(tried))
        for tried in past.attempts
    ]
    output.give_table(heads, rows, empty="", wrap=True)
    output.give("")
    events = [(event.time, event.kind, event.attempt, event.message) for event in past.events]
    output.give_table(("time", "event", "attempt", "message"), events, empty="", wrap=True)


@command.command(
    "end", epilog=example("vdserver instance end 3f9a0c", "vdserver instance end 3f9a0c --force")
)
@click.argument("key", metavar="KEY|NAME")
@click.option("--force", is_flag=True, help="Even before what was promised is over.")
@data_option
@click.pass_context
def end(context: click.Context, key: str, *, force: bool) -> None:
    """End somebody's instance. Billing stops now; a running server removes it within seconds."""
    with opened(context) as store:
        one = _find(store, key)
        until = store.ask(oversight.history, one.key).until
        store.change(reclaim, clock_of(context)(), one, until, force=force)
    output.say(f"{one.key} “{one.name}” of {one.email} has ended.")


def _find(store: Store, key_or_name: str) -> Overview:
    """Find the one that is meant: by key, by the name of the only live one, or of the only one at all."""
    found = store.ask(oversight.overview, key_or_name)
    for meant in (
        [one for one in found if one.key == key_or_name],
        [one for one in found if one.ended_at is None],
        found,
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            keys = ", ".join(one.key for one in meant[:_SHOWN]) + (", …" if len(meant) > _SHOWN else "")
            raise BadRequest(
                f"{len(meant)} instances are named “{key_or_name}”. Take a key, newest first: {keys}"
            )
    raise BadRequest(
        f"No instance has the key or name “{key_or_name}”. All are shown by: vdserver instance list --all"
    )


def _fields(context: click.Context, one: Overview, past: History) -> Iterator[tuple[str, object]]:
    hours, dollars = _charge(context, one)
    yield "key", one.key
    yield "name", one.name
    yield "status", status(one.active_at, one.ended_at)
    yield "renter", one.email
    yield "GPU", f"{one.gpu_id} ({one.gpu_type})"
    yield "image", past.image
    yield "price", f"{one.price:.2f} an hour"
    yield "promise", how_long(past.until)
    yield "charge", f"{dollars:.2f} ({hours} h)"
    yield "created", one.created_at
    yield "active", one.active_at
    if one.unseen_since is not None:
        yield "out of sight", f"since {as_written(one.unseen_since)}; not charged"
    if one.free_seconds:
        yield "not charged", f"{one.free_seconds} s out of sight"
    if past.ends_at is not None and one.ended_at is None:
        yield "time limit", past.ends_at
    yield "ended", None if one.ended_at is None else f"{as_written(one.ended_at)}, {_reason(one)}"
    yield "to be done", _outstanding(past)


def _outstanding(past: History) -> str:
    """Say what the reconciler has in mind."""
    if past.lease_until is not None:
        return f"being worked on, until {as_written(past.lease_until)} at most"
    if past.due_at is None:
        return "nothing"
    tries = f", after {past.failures} steps that came to nothing" if past.failures else ""
    return f"looked at {as_written(past.due_at)}{tries}"


def _fate(tried: Tried) -> str:
    parts = [f"made {as_written(tried.made_at)}"]
    if tried.failed_at is not None:
        parts.append(f"failed {as_written(tried.failed_at)}: {tried.failure}")
    parts.append("held" if tried.released_at is None else f"released {as_written(tried.released_at)}")
    return "; ".join(parts)


def _note(one: Overview) -> str:
    if one.ended_at is not None:
        return _reason(one)
    return "" if one.unseen_since is None else f"out of sight since {as_written(one.unseen_since)}"


def _reason(one: Overview) -> str:
    return (one.end_reason or "").replace("_", " ")


def _charge(context: click.Context, one: Overview) -> tuple[int, Decimal]:
    use = Use(one.price, one.active_at, one.ended_at, one.error, one.unseen_since, one.free_seconds)
    return charge(use, clock_of(context)(), by_second=settings_of(context).billing == "second")


def _summary(context: click.Context, one: Overview) -> dict[str, object]:
    """Describe an instance in the API's words, where it has them."""
    hours, dollars = _charge(context, one)
    return {
        "key": one.key,
        "name": one.name,
        "status": status(one.active_at, one.ended_at),
        "error_occurred": one.error,
        "renter": one.email,
        "gpu": {"id": one.gpu_id, "type": one.gpu_type},
        "port": one.port,
        "hourly_price": one.price,
        "estimated_charge": dollars,
        "duration": hours,
        "start_time": one.created_at,
        "active_time": one.active_at,
        "end_time": one.ended_at,
        "end_reason": one.end_reason,
        "unseen_since": one.unseen_since,
        "free_seconds": one.free_seconds,
    }


def _details(past: History) -> dict[str, object]:
    return {
        "image": past.image,
        "guaranteed_availability": as_written(past.until),
        "time_limit": past.ends_at,
        "due_at": past.due_at,
        "lease_until": past.lease_until,
        "failures": past.failures,
        "attempts": past.attempts,
        "events": past.events,
    }
