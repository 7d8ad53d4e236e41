"""`vdserver`: the operator's program, one file a command.

Commands are imported when they are called, so that `vdserver token new` does not load a web server. Whatever
is refused ends in one line on stderr that says what to do, and a non-zero exit code.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from vectordash import __version__
from vectordash.server.cli import output

_COMMANDS = {
    "up": "Start the cloud: the API, and what keeps instances running.",
    "api": "Serve the API alone, beside others; on PostgreSQL.",
    "reconciler": "Keep instances as they should be, beside others; on PostgreSQL.",
    "migrate": "Bring the store's tables to what this program needs.",
    "backup": "Write all that is in the store into one file, while it is in use.",
    "restore": "Put a backup in the store's place.",
    "move": "Move the store from SQLite's file to PostgreSQL.",
    "user": "Who has an account, and with which limits.",
    "token": "API tokens: make, list, revoke.",
    "gpu": "GPUs: list, price, availability, what is offered.",
    "instance": "Instances of everybody, with their whole history.",
    "doctor": "Check this installation, and say how to mend it.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"vectordash.server.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vdserver")
@click.option(
    "--data",
    metavar="FOLDER",
    envvar="VECTORDASH_DATA",
    help="The folder of everything that must not be lost.  [default: .vectordash]",
)
@click.pass_context
def group(context: click.Context, data: str | None) -> None:
    """Run a GPU cloud: rent GPUs out over HTTP, with a login over SSH.

    Settings come from VECTORDASH_… in the environment, or from the TOML file that VECTORDASH_CONFIG names.
    """
    values = context.ensure_object(dict)
    if data is not None:
        values["data"] = data


def main() -> NoReturn:
    """Run the program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str], **given: object) -> int:
    """Run one command line and give its exit code; `given` is what a test hands in: a clock."""
    try:
        _demand_text(arguments)
        result: Any = group(list(arguments), prog_name="vdserver", standalone_mode=False, obj=given)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return output.USAGE
    except (click.Abort, KeyboardInterrupt):
        return output.INTERRUPTED
    except Exception as error:
        if (line := output.explain(error)) is None:
            raise
        output.say(f"vdserver: {line}")
        return output.USAGE if isinstance(error, click.UsageError) else output.FAILED
    return result if isinstance(result, int) else output.DONE


def _demand_text(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no text here, before they reach the store or an answer."""
    for number, argument in enumerate(arguments, 1):
        if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise click.UsageError(f"Argument {number} is not UTF-8.")
