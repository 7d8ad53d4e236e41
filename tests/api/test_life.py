"""The life of an instance, as its renter sees it through the API."""

import pytest

from cloud import Cloud

pytestmark = pytest.mark.asyncio


async def test_an_instance_is_pending_then_active_then_gone(cloud: Cloud) -> None:
    """POST, wait, DELETE: the status follows, and the GPU is free again."""
    made = await cloud.rent("first")
    assert made["status"] == "pending"

    await cloud.settle()

    assert (await cloud.show("first"))["status"] == "active"
    gone = await cloud.call("DELETE", "/api/instances/first")
    assert (gone.status, gone.body) == (204, b"")
    assert (await cloud.show(made["key"]))["status"] == "complete"
    await cloud.settle()
    assert cloud.driver.there == {}
    assert await cloud.events(made["key"]) == ["rented", "active", "deleted", "released"]
