"""`vdserver instance orphans`, `adopt` and `purge`: what runs and is unknown here, and what becomes of it.

The commands of `instance.py` for what the store has never heard of, mostly because it is a restored backup.
They write what was decided; a running server acts on it.
"""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

import click

from vectordash.server import vault
from vectordash.server.cli import output
from vectordash.server.cli.arguments import Dollars, Until, example
from vectordash.server.cli.folder import clock_of, data_option, opened, settings_of
from vectordash.server.clock import how_long
from vectordash.server.db.facts import fact
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Spec
from vectordash.server.instances import adoption
from vectordash.server.instances.adoption import Wish
from vectordash.server.machines import store as machines
from vectordash.server.machines.store import Orphan
from vectordash.server.settings import Settings
from vectordash.server.vault import Vault, VaultError
from vectordash.wire.errors import BadRequest

_NONE = "Nothing runs that this store does not know."
_ITS_DISK = "with its disk and all that is on it"
_THEIR_DISKS = "with their disks and all that is on them"


@click.command(epilog=example("vdserver instance orphans", "vdserver instance orphans --json"))
@output.json_option
@data_option
@click.pass_context
def orphans(context: click.Context, *, as_json: bool) -> None:
    """Show what runs although this store has never heard of it.

    As a rule the store is a backup that was restored, and these were rented after it was made. Their GPUs and
    ports are not given to anybody, and nothing is done to them until you decide: `adopt` gives one to an
    account, `purge` removes it.

    Columns: name, cluster, hostname, GPUs, port, since when it was seen (UTC), what was decided.
    """
    with opened(context) as store:
        found = store.ask(machines.all_orphans)
        cards = store.ask(machines.cards_named, {uuid for one in found for uuid in one.gpus})
    specs = _specs(settings_of(context), found)
    if as_json:
        output.give_json([_plain(one, cards, specs.get(one.name)) for one in found])
        return
    rows = [
        (
            one.name,
            one.cluster,
            specs[one.name].hostname if one.name in specs else None,
            " ".join(str(cards[uuid][0]) if uuid in cards else uuid for uuid in one.gpus),
            one.port,
            f"{one.found_at:%Y-%m-%d %H:%M}",
            "purge" if one.purge else "nothing",
        )
        for one in found
    ]
    heads = ("name", "cluster", "host", "gpu", "port", "since", "decided")
    output.give_table(heads, rows, empty=_NONE, keep=("name", "since"))
    if output.on_terminal():
        _advise(found, specs.keys())


def _advise(found: list[Orphan], told: Iterable[str]) -> None:
    """Say what can be decided now."""
    waiting = [one for one in found if not one.purge]
    if any(one.name in told for one in waiting):
        output.say("To give one to an account: vdserver instance adopt NAME --for EMAIL")
    if waiting:
        output.say(f"To remove one, {_ITS_DISK}: vdserver instance purge NAME")
    if any(one.name not in told for one in waiting):
        output.say("Where no host is shown, it cannot be adopted yet: what it was made from is not known.")


@click.command(
    epilog=example(
        "vdserver instance adopt vd-3f9a0c5e77aa01b2 --for ada@example.org",
        "vdserver instance adopt vd-3f9a0c5e77aa01b2 --for ada@example.org --price 0.64 --until 30d",
    )
)
@click.argument("orphan", metavar="NAME")
@click.option("--for", "email", required=True, metavar="EMAIL", help="The account that it is given to.")
@click.option("--name", help="What it is called from now on.  [default: its hostname]")
@click.option("--price", type=Dollars(), help="Dollars an hour.  [default: what its GPU is listed at]")
@click.option(
    "--until",
    type=Until("unlimited"),
    metavar="DATE",
    help="Promise it until then, or `unlimited`.  [default: as its GPU is available]",
)
@data_option
@click.pass_context
def adopt(
    context: click.Context,
    orphan: str,
    *,
    email: str,
    name: str | None,
    price: Decimal | None,
    until: datetime | None,
) -> None:
    """Make an orphan an instance of an account, as it runs. Prints the instance's key.

    Nothing of it is touched: address, port, host key and logins stay. Billing begins now, since what was
    before is not known; the account's limits do not apply. Its private key is not known here, so the API
    shows an empty `pem`: the renter has it already.
    """
    now = clock_of(context)()
    with opened(context) as store:
        keys = _keys(settings_of(context), store)
        made = store.change(adoption.adopt, keys, now, orphan, Wish(email, name, price, until))
    output.give(made.key)
    gpu = f"GPU {made.gpu_id} ({made.gpu_type})"
    output.say(
        f"{made.key} “{made.name}” is {made.email}'s: {gpu} at {made.price:.2f} an hour, "
        f"{how_long(made.until)}. Billing has begun."
    )


@click.command(
    epilog=example(
        "vdserver instance purge vd-3f9a0c5e77aa01b2", "vdserver instance purge --all-orphans --yes"
    )
)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all-orphans", is_flag=True, help="All that `vdserver instance orphans` shows.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
@click.pass_context
def purge(context: click.Context, names: tuple[str, ...], *, all_orphans: bool, yes: bool) -> None:
    """Remove orphans, with their disks and all that their renters have on them.

    A running server does it within seconds. It cannot be taken back.
    """
    if bool(names) == all_orphans:
        raise click.UsageError("Which ones? Give their names, or --all-orphans", context)
    with opened(context) as store:
        found = {one.name: one for one in store.ask(machines.all_orphans)}
        chosen = list(found) if all_orphans else list(dict.fromkeys(names))
        if not chosen:
            output.say(_NONE)
            return
        # Of a name that is none of an orphan's, the change itself says what it is.
        known = all(name in found for name in chosen)
        question = f"Remove {', '.join(chosen)}, {_ITS_DISK if len(chosen) == 1 else _THEIR_DISKS}?"
        if known and not yes and not output.confirmed(question):
            raise BadRequest("Nothing is removed.")
        fresh = store.change(adoption.purge, clock_of(context)(), chosen)
    for name in chosen:
        said = "is to be removed" if name in fresh else "was to be removed already"
        output.say(f"{name} {said}: a running server does so within seconds.")


def _keys(settings: Settings, store: Store) -> Vault:
    """Load the key that the servers seal with, and change nothing. Raises `VaultError`."""
    wanted = store.ask(fact, "encryption key")
    loaded = _loaded(settings)
    if wanted is not None and loaded.current != wanted:
        raise VaultError(
            f"The servers seal with the key {wanted}; loaded here is {loaded.current}. Set "
            "VECTORDASH_ENCRYPTION_KEYS as they have it."
        )
    return loaded


def _loaded(settings: Settings) -> Vault:
    if (loaded := vault.load(settings)) is None:
        file = settings.data / "encryption.key"
        raise VaultError(f"{file} is missing. Put it back, or set VECTORDASH_ENCRYPTION_KEYS.")
    return loaded


def _specs(settings: Settings, found: list[Orphan]) -> dict[str, Spec]:
    """Tell what each was made from, as far as that is known; where the key is missing, the list goes on."""
    if all(one.spec is None for one in found):
        return {}
    try:
        keys = _loaded(settings)
        told = {one.name: adoption.open_spec(keys, one) for one in found}
    except VaultError as error:
        output.say(f"What they were made from cannot be read: {error}")
        return {}
    return {name: spec for name, spec in told.items() if spec is not None}


def _plain(one: Orphan, cards: dict[str, tuple[int, str]], spec: Spec | None) -> dict[str, object]:
    return {
        "name": one.name,
        "cluster": one.cluster,
        "hostname": None if spec is None else spec.hostname,
        "image": None if spec is None else spec.image,
        "gpus": [_gpu(uuid, cards.get(uuid)) for uuid in one.gpus],
        "port": one.port,
        "found_at": one.found_at,
        "adoptable": spec is not None and not one.purge,
        "decided": "purge" if one.purge else None,
    }


def _gpu(uuid: str, known: tuple[int, str] | None) -> dict[str, object]:
    gpu_id, kind = known or (None, None)
    return {"id": gpu_id, "type": kind, "uuid": uuid}
