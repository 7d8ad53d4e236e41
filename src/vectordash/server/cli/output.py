"""The only place where `vdserver` prints: results to stdout, everything else to stderr; exit codes.

A table is for people: aligned, with heads, and cut to the width of the terminal. Where stdout is no terminal
the same rows go out whole, without heads, a tab between two cells, for programs; `--json` gives them as JSON
with names that stay. Nothing that a renter has written can break a row or move the cursor.
"""

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

from vectordash.server.clock import UNLIMITED, as_written
from vectordash.server.trouble import Trouble
from vectordash.wire.errors import Refusal

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])

_GAP = 2
_LEAST = 10
"""Columns that a cell keeps when a table is cut to fit."""


def json_option(command: F) -> F:
    """Add `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Give JSON instead of a table.")(command)


def say(text: str) -> None:
    """Tell a person something that is no result."""
    click.echo(text, err=True)


def confirmed(question: str) -> bool:
    """Ask a person before what cannot be undone. Who is no person is to say --yes, so is refused."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to answer at: say --yes", None)
    return click.confirm(question, err=True)


def give(text: str) -> None:
    """Print a result."""
    click.echo(text)


def give_json(value: object) -> None:
    """Print a result as JSON: dataclasses as objects, times in ISO 8601, money as numbers."""
    encoder = msgspec.json.Encoder(decimal_format="number")
    click.echo(msgspec.json.format(encoder.encode(_plain(value)), indent=2).decode())


def give_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str,
    keep: Collection[str] = (),
    wrap: bool = False,
) -> None:
    """Print rows: aligned on a terminal, with tabs elsewhere; `empty` says what to do about none.

    What does not fit the terminal is cut, the last column first, never those to `keep`: keys that people
    copy, and times. With `wrap` the last column is folded instead.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    if not on_terminal():
        if cells:
            give("\n".join("\t".join(row) for row in cells))
        return
    if not cells:
        say(empty)
        return
    table = [[head.upper() for head in heads], *cells]
    widest = [max(_width(row[column]) for row in table) for column in range(len(heads))]
    least = [width if head in keep else min(width, _LEAST) for head, width in zip(heads, widest, strict=True)]
    widths = _fitted(widest, least, _room() - _GAP * (len(heads) - 1))
    give("\n".join(line for row in table for line in _lines(row, widths, wrap=wrap)))


def give_fields(pairs: Sequence[tuple[str, object]]) -> None:
    """Print what is to know of one thing, a line each: its name, then its value, folded on a terminal."""
    rows = [[name, _cell(value)] for name, value in pairs]
    if not on_terminal():
        give("\n".join("\t".join(row) for row in rows))
        return
    widths = [max(_width(name) for name, _ in rows), 0]
    widths[1] = max(_LEAST, _room() - _GAP - widths[0])
    give("\n".join(line for row in rows for line in _lines(row, widths, wrap=True)))


def on_terminal() -> bool:
    """Tell whether a person sees what is printed."""
    return sys.stdout is not None and sys.stdout.isatty()


def explain(error: Exception) -> str | None:
    """Give the line for an error that a person can do something about; None for a mistake of ours."""
    if isinstance(error, Refusal):
        return error.message
    if isinstance(error, click.UsageError):
        return _usage(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, Trouble):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return None


def _usage(error: click.UsageError) -> str:
    """Say what was wrong with a command line, and where the right one is explained."""
    message = " ".join(error.format_message().split())
    if error.ctx is None:
        return message
    return f"{message.rstrip('.')}. See: {error.ctx.command_path} --help"


def _plain(value: object) -> object:
    """Turn a value into what JSON has: times to the second, and “for ever” as the API writes it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return as_written(value) if value >= UNLIMITED else value.replace(microsecond=0)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return as_written(value)
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


# --- what fits a terminal ----------------------------------------------------------------------------------


def _room() -> int:
    return max(40, shutil.get_terminal_size().columns)


def _fitted(widest: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Narrow the last column, then whichever is widest, until the row fits or nothing more gives way."""
    widths = list(widest)
    last = len(widths) - 1
    while sum(widths) > room:
        giving = [column for column, width in enumerate(widths) if width > least[column]]
        if not giving:
            break
        widths[last if last in giving else max(giving, key=lambda column: widths[column])] -= 1
    return widths


def _lines(row: Sequence[str], widths: Sequence[int], *, wrap: bool) -> list[str]:
    """Lay out one row: one line, or as many as its last cell takes."""
    cells = [_cut(cell, width) for cell, width in zip(row, widths, strict=True)]
    start = "".join(
        cell + " " * (width - _width(cell) + _GAP) for cell, width in zip(cells, widths, strict=True)
    )
    if not wrap:
        return [start.rstrip()]
    indent = sum(widths[:-1]) + _GAP * (len(widths) - 1)
    folded = textwrap.wrap(row[-1], widths[-1], break_on_hyphens=False, break_long_words=False) or [""]
    before = "".join(
        cell + " " * (width - _width(cell) + _GAP)
        for cell, width in zip(cells[:-1], widths[:-1], strict=True)
    )
    return [(before if number == 0 else " " * indent) + line for number, line in enumerate(folded)]


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _width(text: str) -> int:
    """Count the columns of a terminal that a text takes: letters of East Asia take two."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)
