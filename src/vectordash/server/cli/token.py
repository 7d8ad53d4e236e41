"""`vdserver token`: API tokens. A token can be read once, when it is made; the store keeps only its hash."""

from datetime import datetime

import click

from vectordash.server.accounts import service as accounts
from vectordash.server.accounts import store as users
from vectordash.server.accounts.store import TokenRow
from vectordash.server.cli import output
from vectordash.server.cli.arguments import Id, Until, example
from vectordash.server.cli.folder import clock_of, data_option, opened
from vectordash.server.clock import UNLIMITED
from vectordash.wire.errors import BadRequest


@click.group()
def command() -> None:
    """API tokens: make, list, revoke."""


@command.command(
    "new",
    epilog=example(
        "vdserver token new ada@example.org",
        "vdserver token new ada@example.org --name laptop --read --expires 30d",
    ),
)
@click.argument("email")
@click.option("--name", default="vdserver", show_default=True, help="What the list calls it.")
@click.option("--read", is_flag=True, help="It may look, and change nothing.")
@click.option(
    "--expires",
    type=Until(endless="never"),
    default="never",
    metavar="DATE",
    help="30d, 12h, or YYYY-MM-DD (its first second, UTC).  [default: never]",
)
@data_option
@click.pass_context
def new(context: click.Context, email: str, name: str, *, read: bool, expires: datetime) -> None:
    """Make a token and print it, and nothing else, to stdout.

    It cannot be shown again.
    """
    now = clock_of(context)()
    with opened(context) as store:
        _, token = store.change(
            accounts.issue_token,
            now,
            email,
            name=name,
            scope="read" if read else "full",
            expires_at=None if expires >= UNLIMITED else expires,
        )
    output.give(token)


@command.command("list", epilog=example("vdserver token list", "vdserver token list ada@example.org --json"))
@click.argument("email", required=False)
@output.json_option
@data_option
@click.pass_context
def list_tokens(context: click.Context, email: str | None, *, as_json: bool) -> None:
    """Show the tokens of an account, or all; never the tokens themselves.

    Columns: id, e-mail, name, scope (full, read), state (live, expired, revoked), when it expires, when it
    was last used (to the minute), UTC.
    """
    now = clock_of(context)()
    with opened(context) as store:
        user_id = None if email is None else store.ask(users.user_id_of, email)
        if email is not None and user_id is None:
            raise BadRequest(f"{email} has no account. They are shown by: vdserver user list")
        found = store.ask(users.all_tokens, user_id)
    if as_json:
        output.give_json([_plain(token, now) for token in found])
        return
    rows = [
        (
            token.id,
            token.email,
            token.name,
            token.scope,
            _state(token, now),
            token.expires_at or "never",
            token.used_at or "never",
        )
        for token in found
    ]
    heads = ("id", "email", "name", "scope", "state", "expires", "used")
    output.give_table(
        heads,
        rows,
        empty="There is no token. Make one with: vdserver token new EMAIL",
        keep=("id", "expires", "used"),
    )


@command.command("revoke", epilog=example("vdserver token revoke 3", "vdserver token revoke 3 4 5"))
@click.argument("ids", nargs=-1, required=True, type=Id())
@data_option
@click.pass_context
def revoke(context: click.Context, ids: tuple[int, ...]) -> None:
    """Make tokens worthless, from the next request on; all of the named ones or none."""
    now = clock_of(context)()
    chosen = list(dict.fromkeys(ids))
    with opened(context) as store:
        owners = store.change(
            lambda connection: [accounts.revoke_token(connection, now, token_id) for token_id in chosen]
        )
    for token_id, email in zip(chosen, owners, strict=True):
        output.say(f"Token {token_id} of {email} is revoked.")


def _state(token: TokenRow, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "live" if token.expires_at is None or token.expires_at > now else "expired"


def _plain(token: TokenRow, now: datetime) -> dict[str, object]:
    return {
        "id": token.id,
        "email": token.email,
        "name": token.name,
        "scope": token.scope,
        "state": _state(token, now),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
        "used_at": token.used_at,
    }
