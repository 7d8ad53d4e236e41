"""The questions of offers are answered by an index: no table is scanned, nothing is sorted."""

import functools
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event, text

from cloud import NOON, Cloud
from vectordash.server.instances import leases
from vectordash.server.machines import offers

pytestmark = pytest.mark.asyncio

SOON = NOON + timedelta(hours=1)
Question = Callable[[Connection], Any]


def steps_of(question: Question, connection: Connection) -> list[str]:
    """Give the database's plan of every statement that a question makes, a step a line."""
    steps: list[str] = []
    kind = connection.dialect.name

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *rest: object) -> None:
        if statement.startswith("SELECT"):
            if kind == "sqlite":
                rows = cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
                steps.extend(row[-1] for row in rows)
            else:
                steps.extend(_generic_plan(cursor, statement, parameters))

    event.listen(connection, "before_cursor_execute", explain)
    try:
        question(connection)
    finally:
        event.remove(connection, "before_cursor_execute", explain)
    return steps


def _generic_plan(cursor: Any, statement: str, parameters: dict[str, Any]) -> list[str]:
    """Plan a prepared statement as PostgreSQL does that knows no value of its parameters.

    psycopg prepares what was executed some times, and the server then may plan it once for all values.
    """
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        names.append(found[1])
        return f"${len(names)}"

    numbered = re.sub(r"%\((\w+)\)s", number, statement)
    cursor.execute(f"PREPARE asked AS {numbered}")
    marks = ", ".join(f"%({name})s" for name in names)
    with psycopg.ClientCursor(cursor.connection) as client:  # EXECUTE itself takes no parameters
        rows = client.execute(f"EXPLAIN EXECUTE asked ({marks})".encode(), parameters).fetchall()
    cursor.execute("DEALLOCATE asked")
    return [str(row[0]).strip() for row in rows]


async def plan(cloud: Cloud, question: Question) -> list[str]:
    """Plan as for large tables: the few rows of a test would be read from end to end."""

    def planned(connection: Connection) -> list[str]:
        if connection.dialect.name == "postgresql":
            for setting in ("enable_seqscan = off", "plan_cache_mode = force_generic_plan"):
                connection.execute(text(f"set {setting}"))
        return steps_of(question, connection)

    return await cloud.plane.store.write(planned)


@pytest.mark.parametrize(
    ("cheapest", "index"), [(False, "ix_gpus_latest"), (True, "ix_gpus_cheapest")], ids=["no date", "date"]
)
@pytest.mark.parametrize("without", [(), (1, 2)], ids=["any", "others"])
async def test_the_best_offer_is_one_seek(
    cloud: Cloud, cheapest: bool, index: str, without: tuple[int, ...]
) -> None:
    question = functools.partial(
        offers.best_offer,
        type_="1080 ti",
        now=NOON,
        at_least_until=SOON,
        cheapest=cheapest,
        without=without,
    )

    steps = await plan(cloud, question)

    if cloud.plane.store.shared:
        assert [step for step in steps if "Sort" in step or "Seq Scan" in step or "Bitmap" in step] == []
        assert any(f"Index Scan using {index} on gpus" in step for step in steps)
        assert any(re.match(r"Index Cond: \(+type = ", step) for step in steps)
    else:
        assert all(step.startswith(f"SEARCH gpus USING INDEX {index} (type=?") for step in steps)
        assert steps


async def test_the_list_of_offers_is_one_seek_a_type(cloud: Cloud) -> None:
    steps = await plan(cloud, lambda connection: offers.free_types(connection, NOON, SOON))

    if cloud.plane.store.shared:
        assert any("Index Scan using ix_gpus_latest on gpus" in step for step in steps)
        assert [step for step in steps if "Seq Scan on gpus" in step] == []
    else:
        on_gpus = [step for step in steps if "gpus" in step or "offered" in step]
        assert [step for step in on_gpus if "SCAN" in step] == []
        assert any("SEARCH gpus USING INDEX ix_gpus_latest (type=?" in step for step in on_gpus)
        assert [step for step in steps if "TEMP B-TREE" in step and "gpu_types" not in steps[0]] == []


async def test_who_is_due_is_read_from_an_index(cloud: Cloud) -> None:
    steps = await plan(cloud, lambda connection: leases.due(connection, NOON, 10))

    if cloud.plane.store.shared:
        assert any("Index Scan using ix_instances_due on instances" in step for step in steps)
        assert [step for step in steps if "Sort" in step or "Seq Scan on instances" in step] == []
    else:
        assert steps[0] == "SEARCH instances USING INDEX ix_instances_due (due_at<?)"
        assert [step for step in steps if "TEMP B-TREE" in step or "SCAN instances" in step] == []
