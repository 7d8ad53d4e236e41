"""`vdserver user`: who has an account, and how much each may use."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import click

from vectordash.server.accounts import service as accounts
from vectordash.server.accounts import store as users
from vectordash.server.accounts.store import Limits
from vectordash.server.cli import invitations, output
from vectordash.server.cli.arguments import Limit, example
from vectordash.server.cli.folder import FolderRefused, clock_of, data_option, opened, settings_of
from vectordash.server.settings import Settings

_LIMIT = Limit()
_TITLES = {
    "gpus_at_once": "GPUs at once",
    "hours_an_instance": "hours an instance",
    "gpu_hours_a_month": "GPU-hours a month",
}


@click.group()
def command() -> None:
    """Who has an account, and with which limits."""


@command.command("add", epilog=example("vdserver user add ada@example.org"))
@click.argument("email")
@click.option("--unconfirmed", is_flag=True, help="The e-mail address counts as not confirmed yet.")
@click.option("--no-payment", is_flag=True, help="There is no payment method yet.")
@data_option
@click.pass_context
def add(context: click.Context, email: str, *, unconfirmed: bool, no_payment: bool) -> None:
    """Make an account.

    It may rent at once, unless an option says otherwise.
    """
    now = clock_of(context)()
    with opened(context) as store:
        store.change(accounts.add_user, now, email, confirmed=not unconfirmed, payment=not no_payment)
    output.say(f"{email.lower()} has an account. Next, its token: vdserver token new {email.lower()}")


@command.command("list", epilog=example("vdserver user list", "vdserver user list --json"))
@output.json_option
@data_option
@click.pass_context
def list_users(context: click.Context, *, as_json: bool) -> None:
    """Show who has an account.

    Columns: e-mail, confirmed, payment method, then the limits that the account has of its own (0: any
    number, -: as the settings say): GPUs at once, hours an instance, GPU-hours a month; since when (UTC).
    """
    with opened(context) as store:
        found = store.ask(users.all_users)
    if as_json:
        output.give_json(found)
        return
    rows = [
        (
            user.email,
            user.email_confirmed,
            user.payment_method_added,
            user.limits.gpus_at_once,
            user.limits.hours_an_instance,
            user.limits.gpu_hours_a_month,
            user.created_at,
        )
        for user in found
    ]
    heads = ("email", "confirmed", "payment", "gpus", "hours", "a month", "since")
    output.give_table(
        heads, rows, empty="Nobody has an account. Make one with: vdserver user add EMAIL", keep=("since",)
    )


@command.command("invite", epilog=example("vdserver user invite class.csv --out tokens.csv"))
@click.argument("file", type=click.File("rb"))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Add the tokens to this file (0600) instead of printing them.",
)
@data_option
@click.pass_context
def invite(context: click.Context, file: BinaryIO, out: Path | None) -> None:
    """Make an account and a token for everybody in a CSV file.

    Its first line names the columns: email, and if wanted name (of the token), gpus, hours,
    gpu_hours_a_month (limits; empty: as the settings say). The tokens come out as CSV: email,token. Whoever
    has an account already is left alone, so the same file may be given again. Nothing is made unless the
    whole file is right. FILE may be - for standard input.
    """
    wanted = invitations.read(file.read(), getattr(file, "name", "the file"))
    now = clock_of(context)()
    with opened(context) as store:
        if out is not None:
            _prepare(out)
        came = store.change(accounts.invite, now, wanted)
    for email in came.known:
        output.say(f"{email} has an account already: left alone")
    if out is None:
        output.give(invitations.written(came.tokens).rstrip("\n"))
    else:
        _add(out, came.tokens)
    where = "" if out is None else f"; the tokens stand in {out}"
    output.say(f"{len(came.tokens)} made, {len(came.known)} left alone{where}.")


@command.command(
    "limits",
    epilog=example(
        "vdserver user limits ada@example.org",
        "vdserver user limits ada@example.org --gpus 2 --hours 0",
        "vdserver user limits ada@example.org --gpus default",
    ),
)
@click.argument("email")
@click.option("--gpus", "gpus_at_once", type=_LIMIT, metavar="N", help="GPUs that it may hold at once.")
@click.option(
    "--hours", "hours_an_instance", type=_LIMIT, metavar="N", help="Hours after which an instance ends."
)
@click.option(
    "--gpu-hours-a-month", type=_LIMIT, metavar="N", help="Started GPU-hours in a calendar month (UTC)."
)
@output.json_option
@data_option
@click.pass_context
def limits(
    context: click.Context, /, email: str, *, as_json: bool, **options: int | Literal["default"] | None
) -> None:
    """Show or change what an account may use.

    A limit is a number, 0 for any number, or `default`: then the settings rule, as the environment of this
    command has them. New limits are for what is rented from now on.
    """
    changes = {
        name: None if limit == "default" else limit for name, limit in options.items() if limit is not None
    }
    now = clock_of(context)()
    with opened(context) as store:
        if changes:
            store.change(accounts.set_limits, now, email, changes)
        own = store.ask(accounts.limits_of, email)
    _show_limits(own, settings_of(context), as_json=as_json)


def _show_limits(own: Limits, settings: Settings, *, as_json: bool) -> None:
    ruling: Mapping[str, tuple[int, str]] = {
        name: (getattr(settings, name), "setting")
        if (limit := getattr(own, name)) is None
        else (limit, "account")
        for name in _TITLES
    }
    if as_json:
        output.give_json({name: {"limit": limit, "from": origin} for name, (limit, origin) in ruling.items()})
        return
    rows = [
        (
            _TITLES[name],
            limit or "any number",
            "this account's own" if origin == "account" else f"the setting VECTORDASH_{name.upper()}",
        )
        for name, (limit, origin) in ruling.items()
    ]
    output.give_table(("limit", "is", "by"), rows, empty="")


def _prepare(out: Path) -> None:
    """Make sure, before any account is made, that its token can be kept: a file of ours, for our eyes."""
    with os.fdopen(os.open(out, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or file.readline() not in {"", invitations.HEAD}:
            raise FolderRefused(f"{out} holds something else than tokens. Name another file: --out FILE")
        os.fchmod(file.fileno(), 0o600)


def _add(out: Path, tokens: list[tuple[str, str]]) -> None:
    """Put tokens behind those that the file has."""
    try:
        with out.open("r+", newline="") as file:
            known = file.read()
            text = invitations.written(tokens)
            file.write(text if not known else text.removeprefix(invitations.HEAD))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FolderRefused(
            f"The accounts were made, but their tokens could not be kept in {out}: {error.strerror}. "
            "Make new ones: vdserver token new EMAIL"
        ) from error
