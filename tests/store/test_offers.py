"""The questions of offers are answered by an index: no table is scanned, nothing is sorted."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event

from cloud import NOON, Cloud
from vectordash.server.instances import leases
from vectordash.server.machines import offers

pytestmark = pytest.mark.asyncio

SOON = NOON + timedelta(hours=1)


def plan(question: Callable[[Connection], Any], connection: Connection) -> list[str]:
    """Give SQLite's plan of every statement that a question makes."""
    steps: list[str] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *rest: object) -> None:
        if statement.startswith("SELECT"):
            rows = cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            steps.extend(row[-1] for row in rows)

    event.listen(connection, "before_cursor_execute", explain)
    question(connection)
    event.remove(connection, "before_cursor_execute", explain)
    return steps


@pytest.mark.parametrize(
    ("cheapest", "index"), [(False, "ix_gpus_latest"), (True, "ix_gpus_cheapest")], ids=["no date", "date"]
)
@pytest.mark.parametrize("without", [(), (1, 2)], ids=["any", "others"])
async def test_the_best_offer_is_one_seek(
    cloud: Cloud, cheapest: bool, index: str, without: tuple[int, ...]
) -> None:
    def question(connection: Connection) -> object:
        return offers.best_offer(
            connection, "1080 ti", NOON, at_least_until=SOON, cheapest=cheapest, without=without
        )

    (step,) = await cloud.plane.store.read(functools.partial(plan, question))

    assert step.startswith(f"SEARCH gpus USING INDEX {index} (type=?")


async def test_the_list_of_offers_is_one_seek_a_type(cloud: Cloud) -> None:
    steps = await cloud.plane.store.read(
        functools.partial(plan, lambda connection: offers.free_types(connection, NOON, SOON))
    )

    on_gpus = [step for step in steps if "gpus" in step or "offered" in step]
    assert [step for step in on_gpus if "SCAN" in step] == []
    assert any("SEARCH gpus USING INDEX ix_gpus_latest (type=?" in step for step in on_gpus)
    assert [step for step in steps if "TEMP B-TREE" in step and "gpu_types" not in steps[0]] == []


async def test_who_is_due_is_read_from_an_index(cloud: Cloud) -> None:
    steps = await cloud.plane.store.read(
        functools.partial(plan, lambda connection: leases.due(connection, NOON, 10))
    )

    assert steps == ["SEARCH instances USING INDEX ix_instances_due (due_at<?)"]
