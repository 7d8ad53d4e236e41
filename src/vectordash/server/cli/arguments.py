"""What operators write on command lines: durations, moments, dollars, limits and GPUs, each parsed once.

Every type says in its error what it takes. Moments are UTC, as everywhere; what is relative counts from the
clock of the command. `example` gives a command's help its example.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

import click

from vectordash.server.cli.folder import clock_of
from vectordash.server.clock import UNLIMITED, as_written

Chosen = tuple[int, ...] | Literal["all"]
"""GPUs by their ids, or all of them."""

_DURATION = re.compile(r"(\d{1,6})([mhd])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_MOMENT = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[ T](\d{2}:\d{2})(:\d{2})?Z?)?", re.ASCII)
_DOLLARS = re.compile(r"\$?(\d{1,9}(?:\.\d{1,2})?)", re.ASCII)
_ID = re.compile(r"[1-9]\d{0,17}", re.ASCII)
_MOST = 1_000_000


def example(*lines: str) -> str:
    """Write the end of a command's help: one or more command lines, kept as they are."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def chosen(ids: tuple[int | Literal["all"], ...]) -> Chosen:
    """Read a list of GPUs."""
    return "all" if "all" in ids else tuple(one for one in ids if one != "all")


class Duration(click.ParamType[timedelta]):
    """A length of time: `90m`, `3h`, `30d`."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        if isinstance(value, timedelta):
            return value
        length = _duration(str(value))
        if not length:
            self.fail(f"“{value}” is no length of time; write 90m, 3h or 30d", param, ctx)
        return length


class Until(click.ParamType[datetime]):
    """A moment to come: a date, a date with a time, a duration from now, or the word for “never ends”."""

    name = "date"

    def __init__(self, endless: str | None = None) -> None:
        self.endless = endless

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it; `UNLIMITED` for the word."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        if self.endless is not None and text == self.endless:
            return UNLIMITED
        now = clock_of(ctx)()
        moment = _moment(text, now)
        if moment is None:
            word = "" if self.endless is None else f" or `{self.endless}`"
            self.fail(
                f"“{text}” is no date; write YYYY-MM-DD, “YYYY-MM-DD HH:MM:SS” (UTC), 3h, 30d{word}",
                param,
                ctx,
            )
        if moment <= now:
            self.fail(f"“{text}” lies in the past; it is now {as_written(now)} (UTC)", param, ctx)
        return moment


class Dollars(click.ParamType[Decimal]):
    """An amount of at most two decimals, such as `0.64`."""

    name = "dollars"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """Read it."""
        if isinstance(value, Decimal):
            return value
        found = _DOLLARS.fullmatch(str(value))
        if found is None:
            self.fail(f"“{value}” is no price; write dollars with at most two decimals: 0.64", param, ctx)
        return Decimal(found[1])


class Limit(click.ParamType[int | Literal["default"]]):
    """A limit of an account: a number, 0 for any number, or `default` for what the settings say."""

    name = "limit"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["default"]:
        """Read it."""
        text = str(value)
        if text == "default":
            return "default"
        if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or int(text) > _MOST:
            self.fail(
                f"“{text}” is no limit; write a number up to {_MOST:,}, 0 (any number) or default", param, ctx
            )
        return int(text)


class Id(click.ParamType[int]):
    """The number of something in a list."""

    name = "id"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if not _ID.fullmatch(str(value)):
            self.fail(f"“{value}” is no id; ids are the numbers in the first column of the list", param, ctx)
        return int(str(value))


class GpuId(click.ParamType[int | Literal["all"]]):
    """A GPU by its number, or `all`."""

    name = "id"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["all"]:
        """Read it."""
        if value == "all":
            return "all"
        if not _ID.fullmatch(str(value)):
            self.fail(f"“{value}” is no GPU; write ids as `vdserver gpu list` shows them, or all", param, ctx)
        return int(str(value))


def _duration(text: str) -> timedelta | None:
    found = _DURATION.fullmatch(text)
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


def _moment(text: str, now: datetime) -> datetime | None:
    if (length := _duration(text)) is not None:
        return min(now + length, UNLIMITED)
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    day, minute, second = found.groups()
    try:
        return datetime.fromisoformat(f"{day} {minute or '00:00'}{second or ':00'}").replace(tzinfo=UTC)
    except ValueError:
        return None
