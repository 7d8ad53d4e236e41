"""A class list as operators have it, a CSV file, read into invitations; and tokens written as CSV. Pure.

The whole file is judged before anything is made, and every line that is wrong is named. Files as spreadsheets
save them are taken: a byte order mark, semicolons, Windows' line ends, empty lines.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from vectordash.server.accounts.service import Invitation, demand_email, demand_token_name
from vectordash.server.trouble import Trouble
from vectordash.wire.errors import BadRequest

HEAD = "email,token\n"

_LIMITS = {"gpus": "gpus_at_once", "hours": "hours_an_instance", "gpu_hours_a_month": "gpu_hours_a_month"}
_COLUMNS = ("email", "name", *_LIMITS)
_NAMELESS = "invitation"
_MOST = 1_000_000
_SHOWN = 10
"""Faults that are told at once."""


class InvitationsRefused(Trouble):
    """The file cannot be taken; the message names the lines and what is wrong with each."""


def read(content: bytes, name: str) -> list[Invitation]:
    """Read a file. Raises `InvitationsRefused`."""
    rows = list(_rows(_text(content, name), name))
    if not rows:
        raise InvitationsRefused(f"{name} is empty. Its first line names the columns, such as: email,name")
    columns = [cell.strip().lower().replace("-", "_") for cell in rows[0][1]]
    _demand_columns(columns, name)
    found: list[Invitation] = []
    faults: list[str] = []
    lines: dict[str, int] = {}
    for number, row in rows[1:]:
        try:
            found.append(one := _invitation(columns, row))
        except BadRequest as error:
            faults.append(f"line {number}: {error.message.rstrip('.')}")
            continue
        if (before := lines.setdefault(one.email, number)) != number:
            faults.append(f"line {number}: {one.email} stands in line {before} already")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise InvitationsRefused(f"{name}: {'; '.join(faults[:_SHOWN])}{more}. Nothing was made.")
    return found


def written(tokens: Sequence[tuple[str, str]]) -> str:
    """Write tokens as CSV, with a head."""
    text = io.StringIO()
    text.write(HEAD)
    csv.writer(text, lineterminator="\n").writerows(tokens)
    return text.getvalue()


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvitationsRefused(f"{name}: line {line} is not UTF-8. Save it as CSV in UTF-8.") from error


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Split into cells, each row with the number of its line; empty lines count but give nothing."""
    head = text.lstrip("\r\n").partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in head else ",", strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InvitationsRefused(f"{name}: line {reader.line_num}: {error}. Nothing was made.") from error


def _demand_columns(columns: Sequence[str], name: str) -> None:
    if "email" not in columns:
        raise InvitationsRefused(f"{name} has no column email: its first line names the columns.")
    if unknown := [column for column in columns if column not in _COLUMNS]:
        raise InvitationsRefused(
            f"{name} has a column “{unknown[0]}” that means nothing here. Take it out; there may be: "
            f"{', '.join(_COLUMNS)}."
        )
    if len(set(columns)) < len(columns):
        raise InvitationsRefused(f"{name} has two columns of one name.")


def _invitation(columns: Sequence[str], row: Sequence[str]) -> Invitation:
    if len(row) != len(columns):
        raise BadRequest(f"it has {len(row)} cells, the first line {len(columns)}")
    cells = {column: cell.strip() for column, cell in zip(columns, row, strict=True)}
    return Invitation(
        email=demand_email(cells["email"]),
        token_name=demand_token_name(cells.get("name") or _NAMELESS),
        limits=_limits(cells),
    )


def _limits(cells: Mapping[str, str]) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    for column, limit in _LIMITS.items():
        text = cells.get(column, "")
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MOST)) and int(text) <= _MOST):
            raise BadRequest(f"{column} is “{text}”, not a number from 0 (any number) to {_MOST}")
        limits[limit] = int(text)
    return limits
