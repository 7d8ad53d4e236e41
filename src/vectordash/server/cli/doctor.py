"""`vdserver doctor`: does this installation work, and what mends it where it does not?"""

import click

from vectordash.server.cli import checks, output
from vectordash.server.cli.arguments import example
from vectordash.server.cli.folder import clock_of, data_option, settings_of
from vectordash.server.clock import BootClock
from vectordash.wire.errors import Unavailable


@click.command(epilog=example("vdserver doctor", "vdserver doctor --json"))
@output.json_option
@data_option
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> int:
    """Check this installation, and say how to mend it.

    Looks and changes nothing, while the server runs or not. Each line: ok, warn or fail; what was checked;
    what was measured, what is needed and, where that is missing, the command that mends it. Exits with 1 if
    a check fails.
    """
    try:
        now = clock_of(context)()
    except Unavailable:  # a check will tell
        now = BootClock()()
    found = list(checks.examine(settings_of(context), now))
    if as_json:
        output.give_json(found)
    elif output.on_terminal():
        rows = [(one.result, one.check, _sentence(one)) for one in found]
        output.give_table(("result", "check", "measured"), rows, empty="", wrap=True)
    else:
        parts = [(one.result, one.check, one.measured, one.needed, one.mend) for one in found]
        output.give_table(("result", "check", "measured", "needed", "mend"), parts, empty="")
    failed = sum(one.result == "fail" for one in found)
    if failed and not as_json:
        output.say(f"{failed} of {len(found)} checks failed.")
    return output.FAILED if failed else output.DONE


def _sentence(one: checks.Check) -> str:
    if one.result == "ok":
        return one.measured
    return f"{one.measured}. Needed: {one.needed}." + (f" Mend: {one.mend}" if one.mend else "")
