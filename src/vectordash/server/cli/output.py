"""The only place where `vdserver` prints: results to stdout, everything else to stderr; exit codes.

A table is aligned for people and, where stdout is not a terminal, one row a line with tabs, for programs;
`--json` gives the same rows as JSON.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

from vectordash.server.clock import as_written
from vectordash.server.settings import SettingsError
from vectordash.wire.errors import Refusal

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Give JSON instead of a table.")(command)


def say(text: str) -> None:
    """Tell a person something that is no result."""
    click.echo(text, err=True)


def give(text: str) -> None:
    """Print a result."""
    click.echo(text)


def give_json(value: object) -> None:
    """Print a result as JSON: dataclasses as objects, times in ISO 8601, money as numbers."""
    encoder = msgspec.json.Encoder(decimal_format="number")
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    click.echo(msgspec.json.format(encoder.encode(plain), indent=2).decode())


def give_table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows: aligned on a terminal, with tabs elsewhere; `empty` says what to do about none."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            click.echo("\t".join(row))
        return
    if not cells:
        say(empty)
        return
    widths = [max(len(row[column]) for row in [list(heads), *cells]) for column in range(len(heads))]
    for row in [[head.upper() for head in heads], *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def explain(error: Exception) -> str | None:
    """Give the line for an error that a person can do something about; None for a mistake of ours."""
    if isinstance(error, Refusal):
        return error.message
    if isinstance(error, SettingsError | click.ClickException):
        return error.message if isinstance(error, click.ClickException) else str(error)
    kind = type(error)
    if kind.__module__.startswith("vectordash.") and kind.__name__.endswith(("Error", "InUse", "Refused")):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return None


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return as_written(value)
    return str(value)
