"""Every refusal of the API: its body, its headers, and which one comes first where several apply."""

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from cloud import Answer, Cloud, open_cloud
from databases import Database
from vectordash.server.accounts import service as accounts
from vectordash.server.accounts.tables import users
from vectordash.server.drivers.fake import simple_machine
from vectordash.server.instances.tables import instances
from vectordash.server.settings import Settings

together = pytest.mark.asyncio(loop_scope="module")
"""For tests that change nothing: all of them use one world."""
alone = pytest.mark.asyncio
"""For tests with a cloud of their own."""

WISH = {"name": "another", "gpu": "1080 ti"}
TAKEN = {"name": "another", "gpu": "Titan V"}
"""A wish for a GPU that is not free."""


@dataclass
class World:
    """A cloud in which everything has happened that a refusal needs."""

    cloud: Cloud
    tokens: dict[str, str]
    keys: dict[str, str]

    async def call(self, ask: "Ask") -> Answer:
        """Send a request; `{gone}` in its path is the key of the instance that has ended."""
        token = None if ask.token is None else self.tokens[ask.token]
        path = ask.path.format(**self.keys)
        return await self.cloud.call(
            ask.method, path, ask.json, body=ask.body, headers=ask.headers, token=token
        )


@dataclass(frozen=True)
class Ask:
    """A request."""

    method: str
    path: str
    json: object = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    token: str | None = "full"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Live and ended instances, two of one name, and tokens of all kinds."""
    machine = simple_machine("m1", *["NVIDIA GeForce GTX 1080 Ti"] * 5, "NVIDIA TITAN V")
    cloud = await open_cloud(tmp_path_factory.mktemp("world") / "data", machine)
    await cloud.stock_keys(50)
    tokens = {
        "full": cloud.token,
        "read": await cloud.new_renter("reader@example.org", scope="read"),
        "other": await cloud.new_renter("other@example.org"),
        "unpaid": await cloud.new_renter("unpaid@example.org", payment=False),
        "unconfirmed": await cloud.new_renter("unconfirmed@example.org", confirmed=False),
        "incomplete": await cloud.new_renter("incomplete@example.org", confirmed=False, payment=False),
    } | await worthless_tokens(cloud)
    keys = {"live": (await cloud.rent("live"))["key"], "gone": (await cloud.rent("gone"))["key"]}
    keys |= {f"twin{number}": (await cloud.rent("twin"))["key"] for number in (1, 2)}
    await cloud.rent("titan", "Titan V")
    await cloud.settle()
    assert (await cloud.call("DELETE", "/api/instances/gone")).status == 204
    await cloud.settle()
    yield World(cloud, tokens, keys)
    await cloud.plane.close()


async def worthless_tokens(cloud: Cloud) -> dict[str, str]:
    """Make a revoked token, an expired one, and one that was never issued."""
    store, now = cloud.plane.store, cloud.clock()
    issue = accounts.issue_token
    revoked_id, revoked = await store.write(issue, now, "ada@example.org", name="revoked")
    await store.write(accounts.revoke_token, now, revoked_id)
    _, expired = await store.write(issue, now, "ada@example.org", name="expired", expires_at=now)
    return {"revoked": revoked, "expired": expired, "unknown": "vd_unknown", "latin": "vd_é"}


def check(answer: Answer, code: int, reason: str) -> Any:
    """Check all that holds for every refusal; gives what it says."""
    error = answer.error
    assert list(answer.json) == ["error"]
    keys = ["code", "name", "reason", "message", "request_id"]
    assert list(error) == ([*keys, "fields"] if "fields" in error else keys)
    assert (answer.status, error["code"], error["reason"]) == (code, code, reason), error["message"]
    assert answer.headers["status"] == f"{code} {error['name']}"
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["x-request-id"] == error["request_id"]
    assert re.fullmatch(r"[0-9a-f]{16}", error["request_id"])
    assert re.fullmatch(r"[A-Z`].*\.", error["message"]), error["message"]
    assert "{" not in error["message"].replace("`{…}`", "")
    assert code == 400 or "fields" not in error
    assert ("retry-after" in answer.headers) == (code in {429, 503, 504})
    assert answer.headers["ratelimit-policy"]
    assert answer.headers["ratelimit"]
    return error


ROWS = {
    "400 body": (400, "Bad Request", "invalid_request", Ask("POST", "/api/instances", body=b"{")),
    "400 field": (400, "Bad Request", "invalid_field", Ask("POST", "/api/instances", {"name": "a"})),
    "400 gpu": (400, "Bad Request", "unknown_gpu", Ask("POST", "/api/instances", WISH | {"gpu": "x"})),
    "400 image": (400, "Bad Request", "unknown_image", Ask("POST", "/api/instances", WISH | {"image": "x"})),
    "400 two of a name": (400, "Bad Request", "ambiguous_name", Ask("GET", "/api/instances/twin")),
    "401": (401, "Unauthorized", "unauthorized", Ask("GET", "/api/account", token=None)),
    "403": (403, "Forbidden", "token_read_only", Ask("POST", "/api/instances", WISH, token="read")),
    "404 route": (404, "Not Found", "route_not_found", Ask("GET", "/api/nothing")),
    "404 instance": (404, "Not Found", "instance_not_found", Ask("GET", "/api/instances/nobody")),
    "405": (405, "Method Not Allowed", "method_not_allowed", Ask("PATCH", "/api/instances")),
    "406": (
        406,
        "Not Acceptable",
        "not_acceptable",
        Ask("GET", "/api/gpus", headers={"accept": "text/html"}),
    ),
    "407": (
        407,
        "Incomplete Profile",
        "incomplete_profile",
        Ask("POST", "/api/instances", WISH, token="unpaid"),
    ),
    "410": (410, "Gone", "instance_gone", Ask("DELETE", "/api/instances/{gone}")),
    "504": (504, "GPU Unavailable", "gpu_unavailable", Ask("POST", "/api/instances", TAKEN)),
    "504 price": (
        504,
        "GPU Unavailable",
        "offer_changed",
        Ask("POST", "/api/instances", WISH, headers={"vectordash-max-price": "0.63"}),
    ),
}


@together
@pytest.mark.parametrize(("code", "name", "reason", "ask"), ROWS.values(), ids=ROWS)
async def test_a_refusal_says_what_and_why(world: World, code: int, name: str, reason: str, ask: Ask) -> None:
    error = check(await world.call(ask), code, reason)

    assert error["name"] == name


NOT_JSON = {"accept": "text/html"}
FIRST = {
    "404 route before 405": (404, Ask("PATCH", "/api/nothing")),
    "404 route before 401": (404, Ask("GET", "/api/nothing", token=None)),
    "404 route before 406": (404, Ask("GET", "/api/nothing", headers=NOT_JSON)),
    "405 before 401": (405, Ask("PATCH", "/api/instances", token=None)),
    "405 before 403": (405, Ask("PATCH", "/api/instances", token="read")),
    "405 before 406": (405, Ask("PATCH", "/api/instances", headers=NOT_JSON)),
    "401 before 406": (401, Ask("GET", "/api/account", headers=NOT_JSON, token=None)),
    "401 before 400 body": (401, Ask("POST", "/api/instances", body=b"{", token=None)),
    "401 before 400 query": (401, Ask("GET", "/api/instances?x=1", token="unknown")),
    "401 before 404": (401, Ask("GET", "/api/instances/nobody", token=None)),
    "403 before 406": (403, Ask("POST", "/api/instances", WISH, headers=NOT_JSON, token="read")),
    "403 before 400": (403, Ask("POST", "/api/instances", body=b"{", token="read")),
    "403 before 404": (403, Ask("DELETE", "/api/instances/nobody", token="read")),
    "406 before 400 body": (406, Ask("POST", "/api/instances", body=b"{", headers=NOT_JSON)),
    "406 before 400 query": (406, Ask("GET", "/api/gpus?x=1", headers=NOT_JSON)),
    "406 before 404": (406, Ask("GET", "/api/instances/nobody", headers=NOT_JSON)),
    "406 before 410": (406, Ask("DELETE", "/api/instances/{gone}", headers=NOT_JSON)),
    "400 before 404": (400, Ask("PUT", "/api/instances/nobody", {"name": "-"})),
    "400 query before 404": (400, Ask("GET", "/api/instances/nobody?wait=99")),
    "400 before 410": (400, Ask("PUT", "/api/instances/{gone}", {"name": "-"})),
    "400 query before 410": (400, Ask("DELETE", "/api/instances/{gone}?now=1")),
    "400 before 407": (400, Ask("POST", "/api/instances", WISH | {"gpu": "x"}, token="unpaid")),
    "400 past date before 407": (
        400,
        Ask("POST", "/api/instances", WISH | {"date": "2020-01-01 00:00:00"}, token="unpaid"),
    ),
    "400 before 504": (400, Ask("POST", "/api/instances", TAKEN | {"image": "x"})),
    "407 before 504": (407, Ask("POST", "/api/instances", TAKEN, token="unpaid")),
}


@together
@pytest.mark.parametrize(("code", "ask"), FIRST.values(), ids=FIRST)
async def test_of_two_refusals_the_contracts_first_is_given(world: World, code: int, ask: Ask) -> None:
    assert (await world.call(ask)).status == code


@alone
async def test_a_replay_comes_before_an_incomplete_profile(cloud: Cloud) -> None:
    """Nor does it matter that the GPU is no longer free, or that its date has passed meanwhile."""
    wish = {"name": "one", "gpu": "Titan V", "date": "2026-03-01 14:00:00"}
    send = {"headers": {"idempotency-key": "k"}}
    first = await cloud.call("POST", "/api/instances", wish, **send)
    await cloud.plane.store.write(
        lambda connection: connection.execute(update(users).values(payment_method_added=False))
    )
    cloud.clock.move(hours=3)

    again = await cloud.call("POST", "/api/instances", wish, **send)

    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json["instance"]["key"] == first.json["instance"]["key"]


# --- routes and methods ------------------------------------------------------------------------------------


@together
async def test_every_route_refuses_the_methods_it_does_not_have_and_says_which_it_has(world: World) -> None:
    """HEAD and OPTIONS are such methods too; the token does not matter."""
    routes = {route.path: route.methods - {"OPTIONS"} for route in world.cloud.plane.app._app.routes}
    for path, has in routes.items():
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"} - has:
            answer = await world.call(Ask(method, path.replace("{key:str}", "live"), token=None))

            assert (answer.status, answer.headers["allow"]) == (405, ", ".join(sorted(has))), path
            assert answer.error["message"].startswith(f"{method} is not possible here")


@together
@pytest.mark.parametrize("path", ["/api/gpus", "/api/gpus/", "//api//gpus", "/api//gpus//", "///api/gpus///"])
async def test_slashes_too_many_change_nothing(world: World, path: str) -> None:
    answer = await world.call(Ask("GET", path))

    assert answer.status == 200
    assert answer.headers["status"] == "200 OK"
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


@together
@pytest.mark.parametrize("token", ["full", "read", "unknown", None])
@pytest.mark.parametrize(
    "path", ["/api", "/api/", "/api/gpu", "/api/instances/a/b", "/api/gpus/x", "//api//x"]
)
async def test_an_unknown_route_is_404_whoever_asks(world: World, path: str, token: str | None) -> None:
    check(await world.call(Ask("GET", path, token=token)), 404, "route_not_found")


@together
async def test_a_path_that_only_begins_like_the_api_is_none_of_it(world: World) -> None:
    answer = await world.call(Ask("GET", "/apiary"))

    assert answer.status == 404
    assert "status" not in answer.headers
    assert "ratelimit" not in answer.headers


# --- who asks ----------------------------------------------------------------------------------------------


@together
@pytest.mark.parametrize("token", [None, "unknown", "revoked", "expired", "latin"])
@pytest.mark.parametrize(
    "ask",
    [
        Ask("GET", "/api/account"),
        Ask("POST", "/api/instances", WISH),
        Ask("PUT", "/api/instances/{live}", {"name": "x"}),
        Ask("DELETE", "/api/instances/{live}"),
        Ask("GET", "/api/instances/{live}/pem"),
    ],
    ids=lambda ask: f"{ask.method} {ask.path}",
)
async def test_without_a_valid_token_nothing_is_shown_or_done(
    world: World, ask: Ask, token: str | None
) -> None:
    answer = await world.call(Ask(ask.method, ask.path, ask.json, token=token))

    check(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@together
async def test_a_bad_token_is_refused_in_the_same_words_whatever_is_wrong_with_it(world: World) -> None:
    messages = {
        (await world.call(Ask("GET", "/api/account", token=token))).error["message"]
        for token in ("unknown", "revoked", "expired")
    }

    assert len(messages) == 1


@together
@pytest.mark.parametrize("path", ["/api/gpus", "/api/images"])
@pytest.mark.parametrize("token", ["full", "unknown", None])
async def test_what_is_public_needs_no_token(world: World, path: str, token: str | None) -> None:
    assert (await world.call(Ask("GET", path, token=token))).status == 200


MALFORMED = {
    "no scheme": "{token}",
    "another scheme": "Basic {token}",
    "no token": "Bearer",
    "blank token": "Bearer   ",
    "two tokens": "Bearer {token} {token}",
    "a comma": "Bearer {token},",
    "quotes": 'Bearer "{token}"',
    "empty": "",
}


@together
@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_authorization_is_401(world: World, header: str) -> None:
    sent = {"authorization": header.format(token=world.tokens["full"])}

    error = check(await world.call(Ask("GET", "/api/account", headers=sent, token=None)), 401, "unauthorized")

    assert world.tokens["full"] not in error["message"]


@together
@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR ", "Bearer  "])
async def test_the_scheme_is_named_in_any_case(world: World, scheme: str) -> None:
    sent = {"authorization": scheme + world.tokens["full"]}

    assert (await world.call(Ask("GET", "/api/account", headers=sent, token=None))).status == 200


@together
@pytest.mark.parametrize(
    "ask",
    [
        Ask("POST", "/api/instances", WISH),
        Ask("PUT", "/api/instances/{live}", {"name": "x"}),
        Ask("DELETE", "/api/instances/{live}"),
    ],
    ids=lambda ask: ask.method,
)
async def test_a_read_only_token_changes_nothing(world: World, ask: Ask) -> None:
    answer = await world.call(Ask(ask.method, ask.path, ask.json, token="read"))

    check(answer, 403, "token_read_only")


@alone
async def test_a_read_only_token_reads_everything(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    _, token = await cloud.plane.store.write(
        accounts.issue_token, cloud.clock(), "ada@example.org", name="reader", scope="read"
    )

    for path in ("account", "gpus", "images", "instances", f"instances/{key}", f"instances/{key}?wait=0"):
        assert (await cloud.call("GET", f"/api/{path}", token=token)).status == 200
    for path in ("connection", "pem", "known_hosts", "ssh_config", "events"):
        assert (await cloud.call("GET", f"/api/instances/{key}/{path}", token=token)).status == 200


@together
@pytest.mark.parametrize("called", ["{live}", "live", "{gone}", "gone", "{twin1}", "twin"])
@pytest.mark.parametrize(
    ("method", "below", "json"),
    [
        ("GET", "", None),
        ("GET", "?wait=30", None),
        ("PUT", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("GET", "/connection", None),
        ("GET", "/pem", None),
        ("GET", "/known_hosts", None),
        ("GET", "/ssh_config", None),
        ("GET", "/events", None),
    ],
    ids=lambda value: str(value or "-"),
)
async def test_another_users_instance_is_not_there(
    world: World, method: str, below: str, json: object, called: str
) -> None:
    answer = await world.call(Ask(method, f"/api/instances/{called}{below}", json, token="other"))

    check(answer, 404, "instance_not_found")


# --- what may be asked -------------------------------------------------------------------------------------

ACCEPTS = {
    "no JSON": ("text/html", 406, 406, 406),
    "only JSON": ("application/json", 200, 200, 404),
    "JSON in a charset": ("application/json; charset=utf-8", 200, 200, 404),
    "anything": ("*/*", 200, 200, 404),
    "any application": ("application/*", 200, 200, 404),
    "any text": ("text/*", 406, 200, 406),
    "plain text": ("text/plain", 406, 200, 406),
    "octets": ("application/octet-stream", 406, 406, 404),
    "a browser": ("text/html,application/xhtml+xml,*/*;q=0.8", 200, 200, 404),
    "not JSON": ("application/json;q=0", 406, 406, 406),
    "all but JSON": ("*/*, application/json;q=0", 406, 200, 404),
    "JSON alone": ("*/*;q=0, application/json;q=0.001", 200, 200, 404),
    "nothing": ("*/*;q=0.0", 406, 406, 406),
    "empty": ("", 200, 200, 404),
    "nonsense": (";;,/", 406, 406, 406),
    "in capitals": ("APPLICATION/JSON", 200, 200, 404),
}


@together
@pytest.mark.parametrize(("accept", "json", "text", "deletion"), ACCEPTS.values(), ids=ACCEPTS)
async def test_an_answer_is_given_only_in_a_form_that_is_accepted(
    world: World, accept: str, json: int, text: int, deletion: int
) -> None:
    sent = {"accept": accept}

    assert (await world.call(Ask("GET", "/api/gpus", headers=sent))).status == json
    assert (await world.call(Ask("GET", "/api/instances/live/pem", headers=sent))).status == text
    assert (await world.call(Ask("DELETE", "/api/instances/nobody", headers=sent))).status == deletion


@together
@pytest.mark.parametrize(
    "ask",
    [
        Ask("GET", "/api/instances/nobody/pem"),
        Ask("GET", "/api/instances/{gone}/known_hosts"),
        Ask("GET", "/api/instances/live/ssh_config", token=None),
        Ask("GET", "/api/instances/live/pem?x=1"),
        Ask("GET", "/api/instances/live/pem", headers={"accept": "image/png"}),
    ],
    ids=["404", "410", "401", "400", "406"],
)
async def test_a_text_endpoint_refuses_in_json(world: World, ask: Ask) -> None:
    answer = await world.call(ask)

    check(answer, answer.status, answer.error["reason"])


@together
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("x=1", "x"),
        ("wait=1&x=", "x"),
        ("WAIT=1", "WAIT"),
        ("wait=61", "wait"),
        ("wait=-1", "wait"),
        ("wait=1.5", "wait"),
        ("wait=soon", "wait"),
        ("wait=", "wait"),
        ("wait=99999999999999999999", "wait"),
        ("wait=1&wait=2", "wait"),
        ("wait=true", "wait"),
    ],
)
async def test_a_query_parameter_unknown_or_out_of_range_is_refused(
    world: World, query: str, field: str
) -> None:
    answer = await world.call(Ask("GET", f"/api/instances/live?{query}"))

    assert answer.status == 400
    assert list(answer.error["fields"]) == [field]


@together
@pytest.mark.parametrize("path", ["gpus", "images", "account", "instances", "instances/live/events"])
async def test_a_path_that_takes_no_query_says_so(world: World, path: str) -> None:
    error = check(await world.call(Ask("GET", f"/api/{path}?colour=red")), 400, "invalid_request")

    assert error["fields"] == {"colour": "unknown"}
    assert error["message"] == "There is no query parameter “colour” here. This path takes none."


@together
@pytest.mark.parametrize(
    ("token", "missing"),
    [
        ("unpaid", ["no payment method"]),
        ("unconfirmed", ["e-mail address is not confirmed"]),
        ("incomplete", ["no payment method", "e-mail address is not confirmed"]),
    ],
)
async def test_an_incomplete_profile_is_told_what_is_missing(
    world: World, token: str, missing: list[str]
) -> None:
    error = check(
        await world.call(Ask("POST", "/api/instances", WISH, token=token)), 407, "incomplete_profile"
    )

    told = {"no payment method", "e-mail address is not confirmed"}
    assert {one for one in told if one in error["message"]} == set(missing)
    assert "Nothing was rented" in error["message"]


@together
async def test_an_ambiguous_name_is_told_the_keys(world: World) -> None:
    error = check(await world.call(Ask("GET", "/api/instances/twin")), 400, "ambiguous_name")

    assert world.keys["twin1"] in error["message"]
    assert world.keys["twin2"] in error["message"]


# --- too many, and our own faults --------------------------------------------------------------------------


@alone
async def test_a_token_that_asks_too_often_is_told_when_to_come_back(new_cloud: Any) -> None:
    cloud = await new_cloud(requests_a_second=1, request_burst=2)
    cloud.plane.services.token_limit.seconds = lambda: 0.0
    left = [(await cloud.call("GET", "/api/account")).headers["ratelimit"] for _ in range(2)]

    answer = await cloud.call("GET", "/api/account")

    assert left == ['"token";r=1;t=1', '"token";r=0;t=1']
    check(answer, 429, "too_many_requests")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["ratelimit"] == '"token";r=0;t=1'
    assert answer.headers["ratelimit-policy"] == '"token";q=2;w=2'
    assert (await cloud.call("GET", "/api/gpus")).status == 200


@alone
@pytest.mark.parametrize(
    ("path", "token", "status"),
    [("gpus", None, 200), ("account", None, 401), ("account", "vd_bad", 401), ("nothing", None, 404)],
)
async def test_an_address_without_a_token_is_counted(
    new_cloud: Any, path: str, token: str | None, status: int
) -> None:
    """Public paths, bad tokens and unknown paths: so that nobody can try many."""
    cloud = await new_cloud(anonymous_requests_a_second=1, anonymous_request_burst=1)
    cloud.plane.services.address_limit.seconds = lambda: 0.0
    assert (await cloud.call("GET", f"/api/{path}", token=token)).status == status

    answer = await cloud.call("GET", f"/api/{path}", token=token)

    check(answer, 429, "too_many_requests")
    assert (await cloud.call("GET", "/api/account")).status == 200


@alone
async def test_a_fault_of_ours_is_told_without_a_trace(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    """Here a private key in the store was damaged. The log has what the answer lacks."""
    await cloud.rent()
    damage = update(instances).values(pem=b"damaged")
    await cloud.plane.store.write(lambda connection: connection.execute(damage))

    answer = await cloud.call("GET", "/api/instances/one")

    error = check(answer, 500, "internal_error")
    assert b"Traceback" not in answer.body
    assert b"Vault" not in answer.body
    [logged] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error["request_id"] in logged.getMessage()
    assert logged.exc_info


@alone
async def test_an_application_whose_store_is_closed_still_answers(cloud: Cloud) -> None:
    cloud.plane.store.close()

    check(await cloud.call("GET", "/api/gpus"), 500, "internal_error")


@alone
async def test_under_maintenance_everything_is_refused_for_a_while(new_cloud: Any) -> None:
    cloud = await new_cloud(maintenance=True)

    for method, path, token in (
        ("GET", "/api/gpus", None),
        ("GET", "/api/account", ""),
        ("POST", "/api/instances", "vd_bad"),
    ):
        answer = await cloud.call(method, path, token=token)
        check(answer, 503, "maintenance")
        assert answer.headers["retry-after"] == "60"
    assert (await cloud.call("GET", "/healthz")).status == 200


@alone
async def test_a_store_that_cannot_be_reached_is_503(cloud: Cloud, database: Database) -> None:
    """Its folder has gone, as a network disk may; or its server lets nobody in, as one that starts."""
    store = cloud.plane.store
    store.hang_up()
    with out_of_reach(database, cloud.plane.settings):
        for method, path in (("GET", "/api/gpus"), ("GET", "/api/account"), ("DELETE", "/api/instances/x")):
            answer = await cloud.call(method, path)
            check(answer, 503, "store_unavailable")
            assert answer.headers["retry-after"] == "2"
        assert "store" in (await cloud.call("GET", "/readyz")).json
        assert (await cloud.call("GET", "/healthz")).status == 200

    assert (await cloud.call("GET", "/api/gpus")).status == 200


@contextmanager
def out_of_reach(database: Database, settings: Settings) -> Iterator[None]:
    """Keep everybody from a store meanwhile."""
    if database.postgres is None:
        elsewhere = settings.data.rename(settings.data.with_name("elsewhere"))
        yield
        elsewhere.rename(settings.data)
    else:
        name = settings.database.rpartition("/")[2]
        database.postgres.do(f"alter database {name} rename to elsewhere")
        yield
        database.postgres.do(f"alter database elsewhere rename to {name}")


@alone
async def test_a_store_with_too_much_to_write_refuses_more_at_once(cloud: Cloud) -> None:
    store, go_on = cloud.plane.store, threading.Event()
    stalled = [store._write_threads.submit(go_on.wait) for _ in range(8)]
    queue = [asyncio.ensure_future(store.write(lambda _: None)) for _ in range(2000)]
    await asyncio.sleep(0)

    answer = await cloud.call("POST", "/api/instances", WISH)
    go_on.set()
    await asyncio.gather(*queue, return_exceptions=True)  # on a busy machine some have waited too long

    check(answer, 503, "store_unavailable")
    assert stalled[0].result()
    assert (await cloud.call("POST", "/api/instances", WISH)).status == 200


# --- headers and logs --------------------------------------------------------------------------------------


@alone
async def test_every_answer_says_its_status_its_id_and_what_is_left(cloud: Cloud) -> None:
    key = (await cloud.rent())["key"]
    for method, path in (
        ("GET", "/api/account"),
        ("GET", f"/api/instances/{key}/pem"),
        ("GET", "/api/nothing"),
        ("PATCH", "/api/gpus"),
        ("DELETE", f"/api/instances/{key}"),
        ("DELETE", f"/api/instances/{key}"),
    ):
        answer = await cloud.call(method, path)
        assert answer.headers["status"].startswith(f"{answer.status} ")
        assert {"content-type", "x-request-id", "ratelimit", "ratelimit-policy"} <= set(answer.headers)


@alone
async def test_the_log_has_the_request_id_and_never_a_secret(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the header's token, nor one that somebody put into a path or a query, nor a pem."""
    caplog.set_level(logging.INFO, "vectordash")
    token = cloud.token
    answers = [
        await cloud.call("POST", "/api/instances", WISH),
        await cloud.call("GET", "/api/account", headers={"authorization": f"Basic {token}"}),
        await cloud.call("GET", "/api/account", headers={"authorization": f"Bearer {token} {token}"}),
        await cloud.call("GET", f"/api/account?token={token}"),
        await cloud.call("GET", f"/api/instances/{token}"),
        await cloud.call("GET", f"/api/list_machines/{token}"),
        await cloud.call("POST", "/api/instances", body=token.encode()),
    ]
    await cloud.settle()

    assert [answer.status for answer in answers] == [200, 401, 401, 400, 404, 404, 400]
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert token not in logged
    assert "PRIVATE KEY" not in logged
    assert all(answer.headers["x-request-id"] in logged for answer in answers)
    assert "/api/instances/vd_***" in caplog.text


@together
async def test_a_path_cannot_forge_a_line_of_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vectordash")

    await world.call(Ask("GET", "/api/instances/a\nGET \x1b[31m/api"))
    await world.call(Ask("GET", "/" + "a" * 10_000))

    assert [record.getMessage() for record in caplog.records] == [
        r"GET /api/instances/a\nGET \x1b[31m/api 404",
        f"GET /{'a' * 199} 404",
    ]
