"""Renting: which GPU, at which price, what a repeated POST gives, and what a renter can do afterwards."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloud import NOON, Answer, Cloud, open_cloud
from vectordash.server.accounts import service as accounts
from vectordash.server.clock import UNLIMITED, as_written
from vectordash.server.drivers.base import StartFailed
from vectordash.server.drivers.fake import Fault, simple_machine

together = pytest.mark.asyncio(loop_scope="module")
"""For tests that leave nothing behind: all of them use one cloud."""
alone = pytest.mark.asyncio

TI, TITAN = "NVIDIA GeForce GTX 1080 Ti", "NVIDIA TITAN V"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def large(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """A cloud of four 1080 ti (1 to 4) and two Titan V (5 and 6)."""
    made = await open_cloud(
        tmp_path_factory.mktemp("large") / "data", simple_machine("m1", *[TI] * 4, TITAN, TITAN)
    )
    await made.stock_keys(600)
    yield made
    await made.plane.close()


@pytest_asyncio.fixture
async def cloud(cloud: Cloud) -> Cloud:
    """The usual cloud with key pairs in stock, all the same, for making one takes long."""
    await cloud.stock_keys(8)
    return cloud


async def post(cloud: Cloud, key: str | None = None, *, token: str = "", **changes: object) -> Answer:
    """Ask for a 1080 ti, or for what `changes` say, with an `Idempotency-Key` if one is given."""
    wish = {"name": "one", "gpu": "1080 ti"} | changes
    headers = {} if key is None else {"idempotency-key": key}
    return await cloud.call("POST", "/api/instances", wish, headers=headers, token=token)


async def offer(cloud: Cloud, **cards: tuple[str, datetime]) -> None:
    """Offer these cards, `gpu_3=("0.64", until)`, and no others."""
    for gpu_id in range(1, 7):
        price, until = cards.get(f"gpu_{gpu_id}", ("1", UNLIMITED))
        await cloud.change_listing(
            gpu_id,
            listed=f"gpu_{gpu_id}" in cards,
            price=Decimal(price),
            available_until=until,
            reserved_until=None,
        )


def later(**by: float) -> datetime:
    """A time after the clock's."""
    return NOON + timedelta(**by)


# --- which GPU ---------------------------------------------------------------------------------------------

DAY, WEEK = later(days=1), later(days=7)
CHOICES = {
    "the longest promise": ({"gpu_1": ("0.10", DAY), "gpu_2": ("0.90", WEEK)}, None, 2),
    "for ever is the longest": ({"gpu_1": ("0.10", WEEK), "gpu_2": ("0.90", UNLIMITED)}, None, 2),
    "then the cheapest": ({"gpu_1": ("0.90", WEEK), "gpu_2": ("0.10", WEEK)}, None, 2),
    "by a cent": ({"gpu_1": ("0.65", WEEK), "gpu_2": ("0.64", WEEK)}, None, 2),
    "then the lowest id": (
        {"gpu_4": ("0.10", WEEK), "gpu_2": ("0.10", WEEK), "gpu_3": ("0.10", WEEK)},
        None,
        2,
    ),
    "with a date the cheapest": ({"gpu_1": ("0.90", UNLIMITED), "gpu_2": ("0.10", WEEK)}, DAY, 2),
    "that lasts": ({"gpu_1": ("0.90", UNLIMITED), "gpu_2": ("0.10", DAY)}, WEEK, 1),
    "to the second": ({"gpu_1": ("0.90", UNLIMITED), "gpu_2": ("0.10", WEEK)}, WEEK, 2),
    "not a second less": (
        {"gpu_1": ("0.90", UNLIMITED), "gpu_2": ("0.10", WEEK - timedelta(seconds=1))},
        WEEK,
        1,
    ),
    "then the latest": ({"gpu_1": ("0.10", WEEK), "gpu_2": ("0.10", UNLIMITED)}, DAY, 2),
    "then the lowest id, dated": ({"gpu_3": ("0.10", WEEK), "gpu_2": ("0.10", WEEK)}, DAY, 2),
    "not one that ends within the hour": (
        {"gpu_1": ("0.10", later(minutes=59)), "gpu_2": ("0.90", later(hours=1))},
        None,
        2,
    ),
    "nor for a date within the hour": (
        {"gpu_1": ("0.10", later(minutes=59)), "gpu_2": ("0.90", later(hours=1))},
        later(minutes=10),
        2,
    ),
    "free of charge": ({"gpu_1": ("0.10", WEEK), "gpu_2": ("0", WEEK)}, None, 2),
}


@together
@pytest.mark.parametrize(("cards", "date", "chosen"), CHOICES.values(), ids=CHOICES)
async def test_the_gpu_that_is_rented_is(
    large: Cloud, cards: dict[str, tuple[str, datetime]], date: datetime | None, chosen: int
) -> None:
    await offer(large, **cards)
    more = {} if date is None else {"date": as_written(date)}

    made = await large.rent(**more)
    await large.clear()

    assert made["physical_gpus"] == [{"id": chosen, "type": "1080 ti"}]
    price, until = cards[f"gpu_{chosen}"]
    assert (made["hourly_price"], made["guaranteed_availability"]) == (float(price), as_written(until))


listings = st.fixed_dictionaries(
    {
        "listed": st.booleans(),
        "price": st.sampled_from(["0", "0.10", "0.64", "0.65", "12.5"]).map(Decimal),
        "available_until": st.sampled_from(
            [later(minutes=59), later(hours=1), later(hours=2), later(days=1), UNLIMITED]
        ),
        "reserved_until": st.sampled_from(
            [None, None, later(hours=-1), NOON, later(seconds=1), later(days=2)]
        ),
    }
)


@together
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(cards=st.lists(listings, min_size=6, max_size=6))
@example(cards=[{"listed": False}] * 6)
async def test_what_the_list_of_gpus_shows_is_what_a_post_without_a_date_takes(
    large: Cloud, cards: list[dict[str, object]]
) -> None:
    for gpu_id, card in enumerate(cards, 1):
        await large.change_listing(gpu_id, **card)
    rows = (await large.call("GET", "/api/gpus")).json["gpus"]
    shown = {row["type"]: (row["hourly_price"], row["max_availability"]) for row in rows}

    taken = {}
    for gpu in ("1080 ti", "Titan V"):
        answer = await post(large, gpu=gpu)
        assert answer.status in {200, 504}
        if answer.status == 200:
            made = answer.json["instance"]
            taken[gpu] = (made["hourly_price"], made["guaranteed_availability"])
    await large.clear()

    assert taken == shown


@together
async def test_a_gpu_that_is_rented_is_offered_again_only_when_it_is_let_go(large: Cloud) -> None:
    await offer(large, gpu_5=("0.85", UNLIMITED))
    await large.rent(gpu="Titan V")
    rented = (await large.call("GET", "/api/gpus")).json["gpus"]
    await large.call("DELETE", "/api/instances/one")
    ended = (await large.call("GET", "/api/gpus")).json["gpus"]
    await large.settle()

    assert (rented, ended) == ([], [])
    assert [row["type"] for row in (await large.call("GET", "/api/gpus")).json["gpus"]] == ["Titan V"]


@together
@pytest.mark.parametrize("gpu", ["1080 ti", "1080 TI", "1080 Ti"])
async def test_a_gpu_type_is_compared_without_case(large: Cloud, gpu: str) -> None:
    await offer(large, gpu_1=("0.64", UNLIMITED))

    made = await large.rent(gpu=gpu)
    await large.clear()

    assert made["physical_gpus"][0]["type"] == "1080 ti"


@together
async def test_an_unknown_gpu_is_told_the_known_ones(large: Cloud) -> None:
    error = (await post(large, gpu="1080")).error
    unknown = (await post(large, gpu="1080ti")).error

    assert error["reason"] == "gpu_unavailable"
    assert unknown["reason"] == "unknown_gpu"
    assert "“1080ti”" in unknown["message"]
    assert all(known in unknown["message"] for known in ("1060 6GB", "1080 ti", "Tesla V100", "MI300X"))


@together
async def test_an_unknown_image_is_told_the_known_ones(large: Cloud) -> None:
    error = (await post(large, image="debian")).error

    assert error["message"] == "There is no image “debian” here. Known images: deep-learning-box, fastai."


@together
async def test_the_images_are_listed(large: Cloud) -> None:
    images = (await large.call("GET", "/api/images", token=None)).json["images"]

    assert [(list(image), image["name"]) for image in images] == [
        (["name", "description"], "deep-learning-box"),
        (["name", "description"], "fastai"),
    ]


# --- none is free ------------------------------------------------------------------------------------------


@together
async def test_where_none_is_free_what_is_free_instead_is_told(large: Cloud) -> None:
    await offer(large, gpu_1=("0.64", DAY))
    answer = await post(large, gpu="Titan V")

    assert answer.error["message"] == (
        "No Titan V is free now. Also free: 1080 ti (0.64 an hour, until 2026-03-02 12:00:00 (UTC)). "
        "When a Titan V becomes free is not known; try again in a minute."
    )
    assert answer.headers["retry-after"] == "60"


@together
async def test_where_none_lasts_how_long_one_does_is_told(large: Cloud) -> None:
    await offer(large, gpu_1=("0.64", DAY), gpu_2=("0.10", later(hours=5)), gpu_5=("0.85", UNLIMITED))
    answer = await post(large, date=as_written(WEEK))

    assert answer.error["message"] == (
        "No 1080 ti is free now and available until 2026-03-08 12:00:00 (UTC). "
        "One is free until 2026-03-02 12:00:00 (UTC). Also free: Titan V (0.85 an hour, without end). "
        "When a 1080 ti becomes free is not known; try again in a minute."
    )


@together
async def test_where_a_reservation_ends_that_is_told(large: Cloud) -> None:
    await offer(large, gpu_1=("0.64", UNLIMITED))
    await large.change_listing(1, reserved_until=later(minutes=30))
    answer = await post(large)

    assert answer.error["message"] == (
        "No 1080 ti is free now. No other type is free either. "
        "A 1080 ti may become free at 2026-03-01 12:30:00 (UTC)."
    )
    assert answer.headers["retry-after"] == "1801"


@together
@pytest.mark.parametrize(("seconds", "status"), [(-1, 200), (0, 200), (1, 504)])
async def test_a_reservation_holds_until_its_end(large: Cloud, seconds: int, status: int) -> None:
    await offer(large, gpu_1=("0.64", UNLIMITED))
    await large.change_listing(1, reserved_until=later(seconds=seconds))

    answer = await post(large)
    await large.clear()

    assert answer.status == status


@alone
async def test_where_an_instance_will_end_by_itself_that_is_told(new_cloud: Any) -> None:
    cloud = await new_cloud(hours_an_instance=3)
    await cloud.stock_keys(1)
    await cloud.rent(gpu="Titan V")

    answer = await post(cloud, gpu="Titan V")

    assert "A Titan V may become free at 2026-03-01 15:00:00 (UTC)." in answer.error["message"]
    assert answer.headers["retry-after"] == "3600"


@alone
async def test_64_clients_at_once_share_10_gpus(new_cloud: Any) -> None:
    """Each GPU and each port is given once, and whoever gets none is told so."""
    cloud = await new_cloud(simple_machine("m1", *[TI] * 10))
    await cloud.stock_keys(10)

    answers = await asyncio.gather(*(post(cloud, name=f"n{number}") for number in range(64)))

    assert Counter(answer.status for answer in answers) == {200: 10, 504: 54}
    assert {answer.error["reason"] for answer in answers if answer.status == 504} == {"gpu_unavailable"}
    made = [answer.json["instance"] for answer in answers if answer.status == 200]
    assert len({one["key"] for one in made}) == 10
    assert {one["physical_gpus"][0]["id"] for one in made} == set(range(1, 11))
    assert len({one["port"] for one in made}) == 10


@alone
async def test_an_empty_stock_of_keys_delays_but_refuses_nobody(new_cloud: Any) -> None:
    cloud = await new_cloud()
    answers = await asyncio.gather(*(post(cloud, name=f"n{number}") for number in range(2)))

    assert [answer.status for answer in answers] == [200, 200]
    assert len({answer.json["instance"]["pem"] for answer in answers}) == 2


# --- price and promise -------------------------------------------------------------------------------------


@alone
async def test_price_and_promise_stay_whatever_the_host_changes_later(cloud: Cloud) -> None:
    await cloud.change_listing(3, price=Decimal("0.85"), available_until=WEEK)
    made = await cloud.rent(gpu="Titan V")
    await cloud.settle()
    terms = ("hourly_price", "guaranteed_availability")
    assert [made[term] for term in terms] == [0.85, "2026-03-08 12:00:00"]

    for change in (
        {"price": Decimal(7)},
        {"price": Decimal("0.01")},
        {"available_until": later(hours=2)},
        {"listed": False},
        {"reserved_until": WEEK},
    ):
        await cloud.change_listing(3, **change)
        await cloud.settle()
        assert [(await cloud.show("one"))[term] for term in terms] == [made[term] for term in terms]

    cloud.clock.move(hours=8)
    assert (await cloud.show("one"))["estimated_charge"] == 6.8
    await cloud.call("DELETE", "/api/instances/one")
    await cloud.settle()
    cloud.clock.move(days=9)
    ended = await cloud.show(made["key"])
    assert [ended[term] for term in (*terms, "estimated_charge", "duration")] == [
        0.85,
        "2026-03-08 12:00:00",
        6.8,
        8,
    ]


@alone
async def test_an_instance_goes_on_after_its_promise(cloud: Cloud) -> None:
    await cloud.change_listing(3, available_until=DAY)
    await cloud.rent(gpu="Titan V")
    await cloud.settle()

    cloud.clock.move(days=3)
    await cloud.settle()

    assert (await cloud.show("one"))["status"] == "active"


@alone
async def test_billing_begins_with_the_login_and_ends_with_the_request_to_delete(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    cloud.clock.move(seconds=10)
    await cloud.settle()
    cloud.clock.move(hours=2)
    cloud.driver.faults.append(Fault("remove", StartFailed("it does not stop")))

    await cloud.call("DELETE", f"/api/instances/{key}")
    cloud.clock.move(hours=5)
    await cloud.settle()

    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"]) == ("complete", False)
    assert (shown["start_time"], shown["end_time"]) == ("2026-03-01T12:00:00Z", "2026-03-01T14:00:10Z")
    assert (shown["duration"], shown["estimated_charge"]) == (2, 1.28)


@alone
async def test_an_instance_that_never_became_active_costs_nothing(cloud: Cloud) -> None:
    made = await cloud.rent()
    assert (made["duration"], made["estimated_charge"]) == (1, 0.64)

    await cloud.call("DELETE", "/api/instances/one")

    shown = await cloud.show(made["key"])
    assert (shown["duration"], shown["estimated_charge"]) == (0, 0)
    assert shown["error_occurred"] is False


# --- Vectordash-Max-Price ----------------------------------------------------------------------------------


@together
@pytest.mark.parametrize("limit", ["0.64", "0.640", "0.65", "1", "000.64", "999999999"])
async def test_an_offer_up_to_the_highest_price_is_taken(large: Cloud, limit: str) -> None:
    await offer(large, gpu_1=("0.64", UNLIMITED))

    answer = await large.call(
        "POST",
        "/api/instances",
        {"name": "one", "gpu": "1080 ti"},
        headers={"vectordash-max-price": limit},
    )
    await large.clear()

    assert answer.status == 200


@together
@pytest.mark.parametrize("limit", ["0.63", "0", "0.639999999"])
async def test_a_dearer_offer_is_shown_and_not_taken(large: Cloud, limit: str) -> None:
    await offer(large, gpu_1=("0.64", DAY))

    answer = await large.call(
        "POST",
        "/api/instances",
        {"name": "one", "gpu": "1080 ti"},
        headers={"vectordash-max-price": limit},
    )

    assert (answer.status, answer.error["reason"]) == (504, "offer_changed")
    assert answer.headers["retry-after"] == "60"
    assert answer.error["message"] == (
        "The 1080 ti that would be rented now costs 0.64 an hour, more than your `Vectordash-Max-Price` of "
        f"{limit}; it is available until 2026-03-02 12:00:00 (UTC). Nothing was rented."
    )
    assert (await large.call("GET", "/api/instances")).json["instances"] == []


@together
@pytest.mark.parametrize(
    "limit",
    ["", "cheap", "-1", "+1", "1,5", "$1", "1e3", "1_0", " ", ".5", "1.", "NaN", "Infinity", "0x1", "1" * 10],
)
async def test_a_malformed_highest_price_is_refused(large: Cloud, limit: str) -> None:
    answer = await large.call(
        "POST",
        "/api/instances",
        {"name": "one", "gpu": "1080 ti"},
        headers={"vectordash-max-price": limit},
    )

    assert answer.status == 400
    assert answer.error["message"] == (
        f"`Vectordash-Max-Price` is “{limit}”; write dollars an hour, such as 0.64."
    )


# --- Idempotency-Key ---------------------------------------------------------------------------------------


@alone
async def test_a_repeated_post_gives_the_same_instance(cloud: Cloud) -> None:
    """As it is now, pem and all; a default that is spelled out changes nothing."""
    first = await post(cloud, "k")
    await cloud.settle()

    again = await post(cloud, "k", image="deep-learning-box")

    assert "idempotent-replayed" not in first.headers
    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json["instance"] == first.json["instance"] | {"status": "active"}
    assert len((await cloud.call("GET", "/api/instances")).json["instances"]) == 1
    assert await cloud.events(first.json["instance"]["key"]) == ["rented", "active"]


@alone
@pytest.mark.parametrize(
    "change",
    [{"name": "two"}, {"gpu": "Titan V"}, {"image": "fastai"}, {"date": "2027-01-01 00:00:00"}],
    ids=str,
)
async def test_the_same_key_with_another_body_is_refused(cloud: Cloud, change: dict[str, str]) -> None:
    await post(cloud, "k")

    answer = await post(cloud, "k", **change)

    assert (answer.status, answer.error["reason"]) == (400, "idempotency_key_reused")
    assert len((await cloud.call("GET", "/api/instances")).json["instances"]) == 1


@alone
async def test_two_accounts_may_use_the_same_key(cloud: Cloud) -> None:
    other = await cloud.new_renter("other@example.org")
    first = await post(cloud, "k")

    answer = await post(cloud, "k", token=other, name="two")

    assert (answer.status, answer.json["instance"]["name"]) == (200, "two")
    assert answer.json["instance"]["key"] != first.json["instance"]["key"]
    assert "idempotent-replayed" not in answer.headers


@alone
@pytest.mark.parametrize(("hours", "same"), [(23.99, True), (24, False), (48, False)])
async def test_a_key_is_kept_for_24_hours(cloud: Cloud, hours: float, same: bool) -> None:
    first = await post(cloud, "k")
    cloud.clock.move(hours=hours)

    again = await post(cloud, "k")

    assert (again.json["instance"]["key"] == first.json["instance"]["key"]) is same


@alone
async def test_after_that_the_key_may_be_used_for_something_else(cloud: Cloud) -> None:
    await post(cloud, "k")
    cloud.clock.move(hours=25)

    answer = await post(cloud, "k", name="two", gpu="Titan V")

    assert (answer.status, answer.json["instance"]["name"]) == (200, "two")
    assert (await post(cloud, "k", name="two", gpu="Titan V")).headers["idempotent-replayed"] == "true"


@alone
async def test_a_refusal_is_not_kept(cloud: Cloud) -> None:
    unpaid = await cloud.new_renter("unpaid@example.org", payment=False)
    await cloud.change_listing(3, listed=False)
    refused = [
        await post(cloud, "k", gpu="Titan V"),
        await post(cloud, "k", gpu="Titan W"),
        await cloud.call(
            "POST",
            "/api/instances",
            {"name": "one", "gpu": "1080 ti"},
            headers={"idempotency-key": "k", "vectordash-max-price": "0.01"},
        ),
        await post(cloud, "k", token=unpaid),
    ]
    await cloud.change_listing(3, listed=True)

    answer = await post(cloud, "k", gpu="Titan V")

    assert [one.status for one in refused] == [504, 400, 504, 407]
    assert answer.status == 200
    assert "idempotent-replayed" not in answer.headers


@together
@pytest.mark.parametrize(("length", "status"), [(0, 400), (1, 200), (255, 200), (256, 400)])
async def test_a_key_has_1_to_255_characters(large: Cloud, length: int, status: int) -> None:
    await offer(large, gpu_1=("0.64", UNLIMITED))

    answer = await post(large, "é" * length)
    await large.clear()

    assert answer.status == status
    assert status == 200 or f"this one has {length}" in answer.error["message"]


@alone
async def test_two_posts_with_one_key_at_once_rent_once(new_cloud: Any) -> None:
    """Even where both find the stock of key pairs empty."""
    cloud = await new_cloud()
    answers = await asyncio.gather(*(post(cloud, "k") for _ in range(6)))

    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["instance"]["key"] for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count("true") == 5


@alone
async def test_a_replay_after_the_end_shows_that_it_has_ended(cloud: Cloud) -> None:
    first = await post(cloud, "k")
    await cloud.call("DELETE", "/api/instances/one")
    await cloud.settle()

    again = await post(cloud, "k")

    assert again.status == 200
    shown = again.json["instance"]
    assert (shown["key"], shown["status"], shown["pem"]) == (first.json["instance"]["key"], "complete", "")


# --- limits and profile ------------------------------------------------------------------------------------


async def limit(cloud: Cloud, **limits: int | None) -> None:
    """Give the cloud's own renter limits of their own."""
    await cloud.plane.store.write(accounts.set_limits, cloud.clock(), "ada@example.org", limits)


@alone
async def test_an_account_holds_so_many_gpus_at_once(new_cloud: Any) -> None:
    cloud = await new_cloud(gpus_at_once=1)
    await cloud.stock_keys(3)
    await cloud.rent("one")
    other = await cloud.new_renter("other@example.org")

    refused = await post(cloud, name="two")

    assert (refused.status, refused.error["reason"]) == (400, "limit_reached")
    assert refused.error["message"] == (
        "Your account's limit of GPUs at once is 1, and it holds 1. End an instance, or ask the operator "
        "of this cloud to raise the limit."
    )
    assert (await post(cloud, token=other)).status == 200
    await cloud.call("DELETE", "/api/instances/one")
    assert (await post(cloud, name="two", gpu="Titan V")).status == 200


@alone
@pytest.mark.parametrize(("own", "status"), [(None, 400), (0, 200), (1, 400), (2, 200)])
async def test_an_accounts_own_limit_wins_over_the_settings(
    new_cloud: Any, own: int | None, status: int
) -> None:
    cloud = await new_cloud(gpus_at_once=1)
    await cloud.stock_keys(2)
    await limit(cloud, gpus_at_once=own)
    await cloud.rent()

    assert (await post(cloud, name="two")).status == status


@alone
async def test_an_account_uses_so_many_gpu_hours_a_month(cloud: Cloud) -> None:
    """Started hours count, of live instances too; the month is the calendar's."""
    await limit(cloud, gpu_hours_a_month=3)
    await cloud.rent("one")
    await cloud.settle()
    cloud.clock.move(hours=1, seconds=1)
    await cloud.rent("two")
    await cloud.settle()
    cloud.clock.move(seconds=1)

    refused = await post(cloud, name="three", gpu="Titan V")

    assert (refused.status, refused.error["reason"]) == (400, "limit_reached")
    assert refused.error["message"] == (
        "Your account's limit of GPU-hours a calendar month is 3, and 3 are used. Wait until the month "
        "is over (UTC), or ask the operator of this cloud to raise the limit."
    )
    await cloud.clear()
    cloud.clock.now = datetime.fromisoformat("2026-03-31T23:59:59+00:00")
    assert (await post(cloud, name="three")).status == 400
    cloud.clock.now = datetime.fromisoformat("2026-04-01T00:00:00+00:00")
    assert (await post(cloud, name="three")).status == 200


@alone
async def test_an_instance_ends_by_itself_after_so_many_hours(new_cloud: Any) -> None:
    cloud = await new_cloud(hours_an_instance=2)
    key = (await cloud.rent())["key"]
    await cloud.settle()
    cloud.clock.move(hours=1, minutes=59)
    await cloud.plane.reconciler._end_those_over_time()
    assert (await cloud.show(key))["status"] == "active"

    cloud.clock.move(minutes=1)
    await cloud.plane.reconciler._end_those_over_time()

    shown = await cloud.show(key)
    assert (shown["status"], shown["error_occurred"], shown["estimated_charge"]) == ("complete", False, 1.28)
    assert await cloud.events(key) == ["rented", "active", "ended"]


@alone
async def test_where_payments_are_free_nobody_needs_a_payment_method(new_cloud: Any) -> None:
    cloud = await new_cloud(payments="free")
    unpaid = await cloud.new_renter("unpaid@example.org", payment=False)
    unconfirmed = await cloud.new_renter("unconfirmed@example.org", payment=False, confirmed=False)

    assert (await post(cloud, token=unpaid)).status == 200
    assert (await cloud.call("GET", "/api/account", token=unpaid)).json["payment_method_added"] is True
    refused = await post(cloud, token=unconfirmed)
    assert refused.status == 407
    assert "payment" not in refused.error["message"]


# --- finding and renaming ----------------------------------------------------------------------------------


@alone
async def test_the_list_has_the_live_ones_newest_first(cloud: Cloud) -> None:
    for name in ("oldest", "ended", "newest"):
        await cloud.rent(name, "Titan V" if name == "ended" else "1080 ti")
        cloud.clock.move(seconds=1)
    await cloud.call("DELETE", "/api/instances/ended")

    told = (await cloud.call("GET", "/api/instances")).json

    assert list(told) == ["instances"]
    assert [one["name"] for one in told["instances"]] == ["newest", "oldest"]


@alone
async def test_an_instance_is_found_by_key_for_ever_and_by_name_while_it_lives(cloud: Cloud) -> None:
    """A key comes before a name that looks like it."""
    made = await cloud.rent("one")
    await cloud.rent(made["key"])
    assert (await cloud.show("one"))["key"] == made["key"]
    assert (await cloud.show(made["key"]))["name"] == "one"

    await cloud.call("DELETE", "/api/instances/one")

    assert (await cloud.call("GET", "/api/instances/one")).status == 404
    assert (await cloud.call("GET", "/api/instances/ONE")).status == 404
    assert (await cloud.show(made["key"]))["status"] == "complete"


@alone
async def test_a_name_is_free_again_after_the_end(cloud: Cloud) -> None:
    await cloud.rent("one")
    await cloud.call("DELETE", "/api/instances/one")

    again = await cloud.rent("one")

    assert (await cloud.show("one"))["key"] == again["key"]


@alone
async def test_of_two_with_one_name_only_keys_tell_which(cloud: Cloud) -> None:
    keys = [(await cloud.rent("twin"))["key"] for _ in range(2)]

    for method, json in (("GET", None), ("PUT", {"name": "x"}), ("DELETE", None)):
        error = (await cloud.call(method, "/api/instances/twin", json)).error
        assert error["reason"] == "ambiguous_name"
        assert all(key in error["message"] for key in keys)
    assert (await cloud.call("DELETE", f"/api/instances/{keys[0]}")).status == 204
    assert (await cloud.show("twin"))["key"] == keys[1]


@alone
async def test_a_renamed_instance_keeps_everything_else(cloud: Cloud) -> None:
    made = await cloud.rent("one")
    await cloud.settle()

    answer = await cloud.call("PUT", "/api/instances/one", {"name": "new_name"})

    assert answer.json == {"instance": made | {"name": "new_name", "status": "active"}}
    assert (await cloud.show("new_name")) == answer.json["instance"]
    assert (await cloud.call("GET", "/api/instances/one")).status == 404
    assert await cloud.events(made["key"]) == ["rented", "active", "renamed"]
    await cloud.settle()
    assert [one.spec.hostname for one in cloud.driver.there.values()] == ["one"]
    await cloud.call("DELETE", "/api/instances/new_name")
    gone = await cloud.call("PUT", f"/api/instances/{made['key']}", {"name": "too-late"})
    assert (gone.status, gone.error["reason"]) == (410, "instance_gone")
    assert (await cloud.show(made["key"]))["name"] == "new_name"


@alone
async def test_an_ended_instance_is_410_to_whoever_would_change_or_use_it(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    assert (await cloud.call("DELETE", "/api/instances/one/")).status == 204

    asked = [("DELETE", "", None), ("PUT", "", {"name": "two"})]
    asked += [("GET", f"/{below}", None) for below in ("connection", "pem", "known_hosts", "ssh_config")]
    for method, below, json in asked:
        answer = await cloud.call(method, f"/api/instances/{key}{below}", json)
        assert (answer.status, answer.error["reason"]) == (410, "instance_gone")
        assert "ended at 2026-03-01 12:00:00 UTC" in answer.error["message"]
    assert (await cloud.call("GET", f"/api/instances/{key}")).status == 200
    assert (await cloud.call("GET", f"/api/instances/{key}/events")).status == 200


# --- waiting -----------------------------------------------------------------------------------------------


async def until(question: Callable[[], object]) -> None:
    """Let others go on until it is so."""
    async with asyncio.timeout(10):
        while not question():
            await asyncio.sleep(0)


async def begin_to_wait(cloud: Cloud, called: str = "one") -> asyncio.Task[Answer]:
    """Begin `?wait=60`; returns once only news can end it."""
    waiters = cloud.plane.services.instances.waiters
    task = asyncio.create_task(cloud.call("GET", f"/api/instances/{called}?wait=60"))
    await until(lambda: any(event._waiters for events in waiters._events.values() for event in events))
    return task


async def soon(asked: Awaitable[Answer]) -> Any:
    """Give the status that is answered long before the 60 seconds are over."""
    async with asyncio.timeout(10):
        return (await asked).json["instance"]["status"]


@alone
async def test_whoever_waits_is_answered_when_it_is_active(cloud: Cloud) -> None:
    await cloud.rent()
    waiting = await begin_to_wait(cloud)
    assert not waiting.done()

    await cloud.settle()

    assert await soon(waiting) == "active"


@alone
async def test_whoever_waits_is_answered_when_it_is_deleted(cloud: Cloud) -> None:
    """At the request, not when its machine is rid of it."""
    key = (await cloud.rent())["key"]
    waiting = await begin_to_wait(cloud, key)

    await cloud.call("DELETE", "/api/instances/one")

    assert await soon(waiting) == "complete"


@alone
async def test_whoever_waits_hears_what_another_process_did(cloud: Cloud) -> None:
    await cloud.rent()
    waiting = await begin_to_wait(cloud)
    cloud.plane.reconciler.tell = lambda _: None  # what another process says does not reach this one
    await cloud.settle()
    assert not waiting.done()

    await cloud.plane.services.instances.waiters.look()

    assert await soon(waiting) == "active"


@alone
async def test_whoever_waits_is_answered_at_the_end_of_the_time(cloud: Cloud) -> None:
    await cloud.rent()
    services = cloud.plane.services
    caller = await services.accounts.recognise(cloud.token)

    shown = await services.instances.wait(caller, "one", 0.001)

    assert shown.status == "pending"
    assert not services.instances.waiters._events


@alone
async def test_whoever_waits_is_answered_when_the_server_stops(cloud: Cloud) -> None:
    """And whoever begins to wait then, at once."""
    await cloud.rent()
    waiting = await begin_to_wait(cloud)

    cloud.plane.services.instances.waiters.tell_all()

    assert await soon(waiting) == "pending"
    assert await soon(cloud.call("GET", "/api/instances/one?wait=60")) == "pending"


@alone
async def test_whoever_hangs_up_is_not_waited_for(cloud: Cloud) -> None:
    await cloud.rent()
    headers = [("authorization", f"Bearer {cloud.token}")]

    await cloud.raw("GET", "/api/instances/one?wait=60", headers, [], cut_off=True)

    await until(lambda: not cloud.plane.services.instances.waiters._events)


@alone
@pytest.mark.parametrize("ended", [False, True], ids=["active", "complete"])
async def test_nobody_waits_for_what_is_no_longer_pending(cloud: Cloud, ended: bool) -> None:
    key = (await cloud.rent())["key"]
    await cloud.settle()
    if ended:
        await cloud.call("DELETE", "/api/instances/one")

    status = await soon(cloud.call("GET", f"/api/instances/{key}?wait=60"))

    assert status == ("complete" if ended else "active")
    assert (await cloud.call("GET", "/api/instances/nobody?wait=60")).status == 404


# --- logging in --------------------------------------------------------------------------------------------


@alone
async def test_all_that_ssh_needs_is_in_one_answer(cloud: Cloud) -> None:
    made = await cloud.rent("my_box")
    told = (await cloud.call("GET", "/api/instances/my_box/connection")).json

    assert list(told) == ["connection"]
    way = told["connection"]
    assert list(way) == ["ip", "port", "user", "pem", "ssh_host_key", "known_hosts", "ssh_command"]
    assert {name: way[name] for name in ("ip", "port", "user", "pem")} == {
        name: made[name] for name in ("ip", "port", "user", "pem")
    }
    assert way["ssh_host_key"].startswith("ssh-ed25519 AAAA")
    assert way["known_hosts"] == f"[{way['ip']}]:{way['port']} {way['ssh_host_key']}\n"
    assert way["ssh_command"] == (
        f"ssh -i my_box.pem -p {way['port']} -o UserKnownHostsFile=my_box.known_hosts "
        f"-o StrictHostKeyChecking=yes ubuntu@{way['ip']}"
    )


@alone
async def test_the_same_comes_as_plain_text(cloud: Cloud) -> None:
    await cloud.rent("my_box")
    way = (await cloud.call("GET", "/api/instances/my_box/connection")).json["connection"]

    for below in ("pem", "known_hosts", "ssh_config"):
        answer = await cloud.call("GET", f"/api/instances/my_box/{below}", headers={"accept": "text/plain"})
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["status"] == "200 OK"
        if below != "ssh_config":
            assert answer.body.decode() == way[below]


@alone
async def test_the_keys_are_those_that_the_machine_was_given(cloud: Cloud) -> None:
    """A traditional RSA PEM, whose public half may log in, and the host key that is told beforehand."""
    before = (await cloud.rent())["pem"]
    host_key = (await cloud.call("GET", "/api/instances/one/connection")).json["connection"]["ssh_host_key"]
    await cloud.settle()
    [there] = cloud.driver.there.values()

    key = load_pem_private_key(before.encode(), None)
    assert isinstance(key, RSAPrivateKey)
    traditional = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert traditional.decode() == before
    assert there.spec.authorized_keys == (public_half(key),)
    assert public_half(load_ssh_private_key(there.spec.host_key.encode(), None)) == host_key


def public_half(key: Any) -> str:
    """The public half of a key, as OpenSSH writes it."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@alone
async def test_every_instance_has_keys_of_its_own(new_cloud: Any) -> None:
    cloud = await new_cloud()
    for name in ("one", "two"):
        await cloud.rent(name)
    ways = [
        (await cloud.call("GET", f"/api/instances/{name}/connection")).json["connection"]
        for name in ("one", "two")
    ]

    assert len({way["pem"] for way in ways}) == len({way["ssh_host_key"] for way in ways}) == 2


@alone
async def test_the_pem_is_erased_when_the_instance_is_gone(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    await cloud.settle()
    await cloud.call("DELETE", "/api/instances/one")

    await cloud.settle()

    assert cloud.driver.there == {}
    assert (await cloud.show(key))["pem"] == ""


@alone
@pytest.mark.needs("ssh", "ssh-keygen")
async def test_openssh_understands_the_files(cloud: Cloud, tmp_path: Path) -> None:
    await cloud.rent("my_box")
    for below, file in (
        ("pem", "my_box.pem"),
        ("known_hosts", "my_box.known_hosts"),
        ("ssh_config", "config"),
    ):
        text = (await cloud.call("GET", f"/api/instances/my_box/{below}")).body
        (tmp_path / file).write_bytes(text)
        (tmp_path / file).chmod(0o600)
    way = (await cloud.call("GET", "/api/instances/my_box/connection")).json["connection"]

    def output_of(*command: str) -> list[str]:
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=20)
        return ran.stdout.splitlines()

    settings_of_ssh = output_of("ssh", "-G", "-F", "config", "my_box")
    assert {
        f"hostname {way['ip']}",
        f"port {way['port']}",
        "user ubuntu",
        "identityfile my_box.pem",
        "userknownhostsfile my_box.known_hosts",
        "stricthostkeychecking true",
        "identitiesonly yes",
    } <= set(settings_of_ssh)
    [public] = output_of("ssh-keygen", "-y", "-f", "my_box.pem")
    assert public.split()[:2] == public_half(load_pem_private_key(way["pem"].encode(), None)).split()
    known = output_of("ssh-keygen", "-F", f"[{way['ip']}]:{way['port']}", "-f", "my_box.known_hosts")
    assert known[-1] == way["known_hosts"].rstrip()


@alone
async def test_the_events_tell_what_happened(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    cloud.clock.move(seconds=7)
    await cloud.settle()
    answer = await cloud.call("GET", f"/api/instances/{key}/events")

    assert list(answer.json) == ["events"]
    assert answer.json["events"] == [
        {
            "time": "2026-03-01T12:00:00Z",
            "kind": "rented",
            "attempt": 1,
            "message": "Rented GPU 1 (1080 ti) at 0.64 an hour, available without end.",
        },
        {
            "time": "2026-03-01T12:00:07Z",
            "kind": "active",
            "attempt": 1,
            "message": "A login worked; billing has begun.",
        },
    ]
