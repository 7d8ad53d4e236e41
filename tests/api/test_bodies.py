"""Bodies of requests: what is not exactly what the contract says is a 400 that says why, never a 500."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud import Answer, Cloud

together = pytest.mark.asyncio(loop_scope="module")
"""For tests that leave nothing behind: all of them use one cloud."""
alone = pytest.mark.asyncio

NAME = "a name is 1 to 63 letters, digits, `-` or `_`, beginning and ending with a letter or digit"
DATE = "write YYYY-MM-DD HH:MM:SS (UTC)"


async def post(
    cloud: Cloud, body: bytes, content_type: str | None = "application/json", **how: Any
) -> Answer:
    """Send a body as it is."""
    return await send(cloud, "POST", "/api/instances", [body], content_type, **how)


async def send(
    cloud: Cloud, method: str, path: str, pieces: list[bytes], content_type: str | None, **how: Any
) -> Answer:
    """Send a body in pieces, as they are."""
    headers = [("authorization", f"Bearer {cloud.token}")]
    if content_type is not None:
        headers.append(("content-type", content_type))
    return await cloud.raw(method, path, headers, pieces, **how)


def wish(**changes: object) -> bytes:
    """A good body but for these changes."""
    return json.dumps({"name": "one", "gpu": "Tesla V100"} | changes).encode()


def nested(depth: int) -> bytes:
    """A good body but for one value, which is nested."""
    return wish()[:-1] + b', "image": ' + b"[" * depth + b"]" * depth + b"}"


# --- not JSON, or not an object ----------------------------------------------------------------------------

NO_BODY = "The request has no body: send a JSON object."
NOT_AN_OBJECT = "The body is not a JSON object: send `{…}`."
NOT_JSON = "The body is not valid JSON: "
"""What follows is the decoder's finding."""
NOT_UTF_8 = NOT_JSON + "it is not UTF-8."
TOO_DEEP = NOT_JSON + "it is nested too deeply."
NO_OBJECT = {
    "empty": (b"", NO_BODY),
    "blank": (b" \n", NOT_JSON),
    "null": (b"null", NOT_AN_OBJECT),
    "true": (b"true", NOT_AN_OBJECT),
    "number": (b"42", NOT_AN_OBJECT),
    "string": (b'"name"', NOT_AN_OBJECT),
    "empty array": (b"[]", NOT_AN_OBJECT),
    "array of objects": (b"[" + wish() + b"]", NOT_AN_OBJECT),
    "truncated": (wish()[:-1], NOT_JSON),
    "truncated string": (b'{"name": "o', NOT_JSON),
    "two values": (wish() + wish(), NOT_JSON),
    "trailing comma": (
        b'{"name": "one",}',
        NOT_JSON,
    ),
    "no comma": (b'{"name": "one" "gpu": "x"}', NOT_JSON),
    "single quotes": (
        b"{'name': 'one'}",
        NOT_JSON,
    ),
    "unquoted": (b"{name: 1}", NOT_JSON),
    "a comment": (b"{} // so", NOT_JSON),
    "a form": (b"name=one&gpu=x", NOT_JSON),
    "XML": (b"<name/>", NOT_JSON),
    "NaN": (b'{"name": NaN}', NOT_JSON),
    "Infinity": (b'{"name": Infinity}', NOT_JSON),
    "-Infinity": (b'{"name": -Infinity}', NOT_JSON),
    "hexadecimal": (b'{"name": 0x10}', NOT_JSON),
    "leading zero": (b'{"name": 01}', NOT_JSON),
    "an immense number": (b'{"name": 1e999}', NOT_JSON),
    "an immense integer": (
        b'{"name": ' + b"9" * 5000 + b"}",
        NOT_JSON,
    ),
    "a BOM": (b"\xef\xbb\xbf" + wish(), NOT_JSON),
    "UTF-16": (wish().decode().encode("utf-16"), NOT_JSON),
    "bad UTF-8": (b'{"name": "\xff"}', NOT_UTF_8),
    "bad UTF-8 outside": (b"\xff{}", NOT_JSON),
    "bad UTF-8 key": (b'{"\xc3\x28": 1}', NOT_UTF_8),
    "encoded surrogate": (b'{"name": "\xed\xa0\x80"}', NOT_UTF_8),
    "overlong": (b'{"name": "\xc0\xaf"}', NOT_UTF_8),
    "a high surrogate alone": (
        b'{"name": "\\ud800"}',
        NOT_JSON,
    ),
    "a low surrogate alone": (
        b'{"name": "\\udc00"}',
        NOT_JSON,
    ),
    "a raw NUL": (b'{"name": "a\x00"}', NOT_JSON),
    "a raw newline": (b'{"name": "a\n"}', NOT_JSON),
    "arrays 5,000 deep": (nested(5000), TOO_DEEP),
    "objects 5,000 deep": (b'{"a":' * 5000, TOO_DEEP),
}


@together
@pytest.mark.parametrize(("body", "message"), NO_OBJECT.values(), ids=NO_OBJECT)
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/instances"), ("PUT", "/api/instances/one")])
async def test_what_is_no_json_object_is_refused(
    shared_cloud: Cloud, method: str, path: str, body: bytes, message: str
) -> None:
    answer = await send(shared_cloud, method, path, [body], "application/json")

    assert (answer.status, answer.error["reason"]) == (400, "invalid_request")
    assert answer.error["message"].startswith(message)
    assert "malformed" not in answer.error["message"]
    assert "fields" not in answer.error


# --- fields ------------------------------------------------------------------------------------------------

FIELDS = {
    "no fields": (b"{}", {"name": "required"}),
    "no name": (b'{"gpu": "1080 ti"}', {"name": "required"}),
    "no gpu": (b'{"name": "one"}', {"gpu": "required"}),
    "unknown": (wish(colour="red"), {"colour": "unknown field"}),
    "unknown with an empty name": (wish(**{"": 1}), {"": "unknown field"}),
    "another case": (wish(Image="fastai"), {"Image": "unknown field"}),
    "a field of answers": (wish(status="active"), {"status": "unknown field"}),
    "cpu": (wish(cpu="i9"), {"cpu": "not supported yet"}),
    "cores": (wish(cores=8), {"cores": "not supported yet"}),
    "ram": (wish(ram=16), {"ram": "not supported yet"}),
    "storage": (wish(storage=500), {"storage": "not supported yet"}),
    "volumes": (wish(volumes=["data"]), {"volumes": "not supported yet"}),
    "name a number": (wish(name=1), {"name": "it must be a string, not a whole number"}),
    "name a real": (wish(name=1.5), {"name": "it must be a string, not a number"}),
    "name true": (wish(name=True), {"name": "it must be a string, not true or false"}),
    "name null": (wish(name=None), {"name": "it must be a string, not null"}),
    "name an array": (wish(name=["one"]), {"name": "it must be a string, not an array"}),
    "name an object": (wish(name={"a": 1}), {"name": "it must be a string, not an object"}),
    "gpu a number": (wish(gpu=1080), {"gpu": "it must be a string, not a whole number"}),
    "gpu null": (wish(gpu=None), {"gpu": "it must be a string, not null"}),
    "gpu empty": (wish(gpu=""), {"gpu": "it is empty"}),
    "gpu too long": (wish(gpu="x" * 61), {"gpu": "it may have at most 60 characters"}),
    "gpu NUL": (wish(gpu="\0"), {"gpu": "unknown GPU type"}),
    "gpu with a blank": (wish(gpu="Tesla V100 "), {"gpu": "unknown GPU type"}),
    "gpu in another alphabet": (wish(gpu="Tesla V1\u03bf0"), {"gpu": "unknown GPU type"}),
    "gpu emoji": (wish(gpu="🦦" * 60), {"gpu": "unknown GPU type"}),
    "gpu SQL": (wish(gpu="' or 1=1 --"), {"gpu": "unknown GPU type"}),
    "gpu braces": (wish(gpu="{0}{known}%s"), {"gpu": "unknown GPU type"}),
    "image null": (wish(image=None), {"image": "it must be a string, not null"}),
    "image empty": (wish(image=""), {"image": "it is empty"}),
    "image too long": (wish(image="x" * 61), {"image": "it may have at most 60 characters"}),
    "image unknown": (wish(image="windows"), {"image": "unknown image"}),
    "image in another case": (wish(image="FastAI"), {"image": "unknown image"}),
    "date null": (wish(date=None), {"date": "it must be a string, not null"}),
    "date a number": (wish(date=1893456000), {"date": "it must be a string, not a whole number"}),
}


@together
@pytest.mark.parametrize(("body", "fields"), FIELDS.values(), ids=FIELDS)
async def test_a_bad_field_is_named(shared_cloud: Cloud, body: bytes, fields: dict[str, str]) -> None:
    answer = await post(shared_cloud, body)

    assert (answer.status, answer.error["fields"]) == (400, fields)
    [field] = fields
    assert f"`{field}`" in answer.error["message"] or answer.error["reason"] in {
        "unknown_gpu",
        "unknown_image",
    }


@together
@pytest.mark.parametrize(
    "body", [b'{"name": "two", "gpu": "1080 ti"}', b'{"name": "two", "key": "x"}', b"{}"]
)
async def test_a_renaming_takes_a_name_and_nothing_else(shared_cloud: Cloud, body: bytes) -> None:
    answer = await send(shared_cloud, "PUT", "/api/instances/one", [body], "application/json")

    assert answer.status == 400
    assert list(answer.error["fields"]) in (["gpu"], ["key"], ["name"])


@alone
async def test_of_a_repeated_key_the_last_counts(cloud: Cloud) -> None:
    answer = await post(cloud, b'{"name": 7, "gpu": "x", "name": "last", "gpu": "1080 ti"}')

    assert (answer.status, answer.json["instance"]["name"]) == (200, "last")


GOOD_NAMES = {
    "one letter": "a",
    "one digit": "7",
    "capitals": "Abc",
    "dashes": "a-b--c",
    "underscores": "new_instance__2",
    "digits first": "2080",
    "63 characters": "a" * 63,
    "as a key": "0123456789ab",
}
BAD_NAMES = {
    "empty": "",
    "64 characters": "a" * 64,
    "dash first": "-a",
    "dash last": "a-",
    "underscore first": "_a",
    "underscore last": "a_",
    "only a dash": "-",
    "a dot": "a.b",
    "a blank": "a b",
    "blank last": "a ",
    "newline last": "a\n",
    "carriage return last": "a\r",
    "newline first": "\na",
    "newline within": "a\nb",
    "NUL": "a\0",
    "tab": "a\tb",
    "a slash": "a/b",
    "a quote": "a'b",
    "a command": "$(id)",
    "an umlaut": "bücher",
    "Cyrillic": "\u0430",
    "Arabic digit": "a\u0661",
    "full width": "\uff21",
    "emoji": "🦦",
    "combining": "e\u0301",
    "right to left": "a\u202eb",
    "no-break space": "a\u00a0b",
    "line separator": "a\u2028",
}


@together
@pytest.mark.parametrize("name", GOOD_NAMES.values(), ids=GOOD_NAMES)
async def test_a_good_name_becomes_the_hostname(shared_cloud: Cloud, name: str) -> None:
    """Underscores become dashes there; the API shows the name as it was given."""
    made = await shared_cloud.rent(name)
    await shared_cloud.settle()
    [there] = shared_cloud.driver.there.values()
    await shared_cloud.clear()

    assert (made["name"], there.spec.hostname) == (name, name.replace("_", "-"))


@together
@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
async def test_a_bad_name_is_refused(shared_cloud: Cloud, name: str) -> None:
    too_short_or_long = {"": "it is empty", "a" * 64: "it may have at most 63 characters"}

    for method, path, body in (
        ("POST", "/api/instances", wish(name=name)),
        ("PUT", "/api/instances/one", json.dumps({"name": name}).encode()),
    ):
        answer = await send(shared_cloud, method, path, [body], "application/json")

        assert answer.status == 400
        assert answer.error["fields"] == {"name": too_short_or_long.get(name, NAME)}


BAD_DATES = {
    "empty": ("", DATE),
    "a word": ("tomorrow", DATE),
    "no time": ("2027-01-01", DATE),
    "no seconds": ("2027-01-01 00:00", DATE),
    "a T": ("2027-01-01T00:00:00", DATE),
    "a Z": ("2027-01-01 00:00:00Z", DATE),
    "a zone": ("2027-01-01 00:00:00+01:00", DATE),
    "a fraction": ("2027-01-01 00:00:00.5", DATE),
    "newline last": ("2027-01-01 00:00:00\n", DATE),
    "blank first": (" 2027-01-01 00:00:00", DATE),
    "two blanks": ("2027-01-01  0:00:00", DATE),
    "short month": ("2027-1-01 00:00:00", DATE),
    "five digits": ("12027-01-01 00:00:00", DATE),
    "Arabic digits": ("\u0662\u0660\u0662\u0667-01-01 00:00:00", DATE),
    "unlimited": ("unlimited", DATE),
    "no such day": ("2026-02-30 00:00:00", f"there is no 2026-02-30 00:00:00; {DATE}"),
    "no leap year": ("2027-02-29 00:00:00", f"there is no 2027-02-29 00:00:00; {DATE}"),
    "month 13": ("2027-13-01 00:00:00", f"there is no 2027-13-01 00:00:00; {DATE}"),
    "hour 24": ("2027-01-01 24:00:00", f"there is no 2027-01-01 24:00:00; {DATE}"),
    "leap second": ("2027-01-01 00:00:60", f"there is no 2027-01-01 00:00:60; {DATE}"),
    "year 0": ("0000-01-01 00:00:00", f"there is no 0000-01-01 00:00:00; {DATE}"),
    "year 1": ("0001-01-01 00:00:00", "it lies in the past; it is now 2026-03-01 12:00:00 (UTC)"),
    "a second ago": ("2026-03-01 11:59:59", "it lies in the past; it is now 2026-03-01 12:00:00 (UTC)"),
    "now": ("2026-03-01 12:00:00", "it lies in the past; it is now 2026-03-01 12:00:00 (UTC)"),
}


@together
@pytest.mark.parametrize(("date", "why"), BAD_DATES.values(), ids=BAD_DATES)
async def test_a_bad_date_is_refused(shared_cloud: Cloud, date: str, why: str) -> None:
    answer = await post(shared_cloud, wish(date=date))

    assert (answer.status, answer.error["reason"]) == (400, "invalid_field")
    assert answer.error["fields"] == {"date": why}


@together
@pytest.mark.parametrize("date", ["2026-03-01 12:00:01", "2028-02-29 23:59:59", "9999-12-31 23:59:59"])
async def test_an_unlimited_gpu_lasts_until_any_date(shared_cloud: Cloud, date: str) -> None:
    made = await shared_cloud.rent(date=date)
    await shared_cloud.clear()

    assert made["guaranteed_availability"] == "unlimited"


# --- how it is sent ----------------------------------------------------------------------------------------

CONTENT_TYPES = {
    "plain": ("application/json", True),
    "UTF-8": ("application/json; charset=utf-8", True),
    "UTF-8 in capitals": ("Application/JSON;charset=UTF-8", True),
    "UTF-8 in quotes": ('application/json; charset="utf-8"', True),
    "another parameter": ("application/json; profile=x", True),
    "Latin 1": ("application/json; charset=iso-8859-1", False),
    "UTF-16": ("application/json; charset=utf-16", False),
    "none": (None, False),
    "empty": ("", False),
    "text": ("text/plain", False),
    "a form": ("application/x-www-form-urlencoded", False),
    "parts": ("multipart/form-data; boundary=x", False),
    "msgpack": ("application/x-msgpack", False),
    "JSON of a kind": ("application/problem+json", False),
    "JSON lines": ("application/jsonl", False),
    "text JSON": ("text/json", False),
    "two": ("text/plain, application/json", False),
    "nonsense": (";", False),
}


@together
@pytest.mark.parametrize(("content_type", "taken"), CONTENT_TYPES.values(), ids=CONTENT_TYPES)
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/instances"), ("PUT", "/api/instances/nobody")])
async def test_only_json_in_utf_8_is_taken(
    shared_cloud: Cloud, method: str, path: str, content_type: str | None, taken: bool
) -> None:
    body = wish() if method == "POST" else b'{"name": "two"}'

    answer = await send(shared_cloud, method, path, [body], content_type)

    assert answer.status == ((504 if method == "POST" else 404) if taken else 400)
    assert taken or "Content-Type" in answer.error["message"] or "charset" in answer.error["message"]


def padded(size: int) -> bytes:
    """A good body of that many bytes."""
    return wish().ljust(size)


@dataclass(frozen=True)
class Sent:
    """How a body travels."""

    pieces: list[bytes]
    announced: int | None = None


SENT = {
    "64 KiB at once": (Sent([padded(65536)]), 504),
    "64 KiB announced": (Sent([padded(65536)], announced=65536), 504),
    "64 KiB in pieces": (Sent([padded(65536)[at : at + 8192] for at in range(0, 65536, 8192)]), 504),
    "byte by byte": (Sent([bytes([byte]) for byte in wish()]), 504),
    "with empty pieces": (Sent([b"", wish()[:9], b"", wish()[9:], b""]), 504),
    "a byte more": (Sent([padded(65537)]), 400),
    "a byte more announced": (Sent([padded(65537)], announced=65537), 400),
    "a byte more in pieces": (Sent([padded(65536), b" "]), 400),
    "much more in pieces": (Sent([b" " * 65536] * 10), 400),
    "more announced than sent": (Sent([wish()], announced=10**9), 400),
    "no length at all": (Sent([wish()], announced=-1), 504),
}


@together
@pytest.mark.parametrize(("sent", "status"), SENT.values(), ids=SENT)
async def test_a_body_of_up_to_64_kib_is_taken_however_it_travels(
    shared_cloud: Cloud, sent: Sent, status: int
) -> None:
    headers = [("authorization", f"Bearer {shared_cloud.token}"), ("content-type", "application/json")]
    if sent.announced is not None:
        headers.append(("content-length", str(sent.announced)))

    answer = await shared_cloud.raw("POST", "/api/instances", headers, sent.pieces)

    assert answer.status == status
    assert status != 400 or answer.error["message"] == "The body is over 64 KiB."


@together
async def test_a_length_that_is_no_number_is_refused(shared_cloud: Cloud) -> None:
    headers = [("authorization", f"Bearer {shared_cloud.token}"), ("content-length", "much")]

    answer = await shared_cloud.raw("POST", "/api/instances", headers, wish())

    assert answer.status == 400


@together
@pytest.mark.parametrize("pieces", [[], [b""], [b'{"name"'], [wish()]], ids=["at once", "1", "2", "3"])
async def test_a_body_that_is_cut_off_rents_nothing(shared_cloud: Cloud, pieces: list[bytes]) -> None:
    answer = await post(shared_cloud, b"")
    answer = await send(shared_cloud, "POST", "/api/instances", pieces, "application/json", cut_off=True)

    assert (answer.status, answer.error["message"]) == (400, "The body was cut off.")
    assert (await shared_cloud.call("GET", "/api/instances")).json == {"instances": []}


# --- anything ----------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(["name", "gpu", "image", "date", "ram", "data", "key"]) | st.text(max_size=5)
field_values = json_values | st.sampled_from(["Tesla V100", "fastai", "2027-01-01 00:00:00", "one"])
bodies = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(field_names, field_values, max_size=5).map(lambda value: json.dumps(value).encode())
)


@together
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies, cut=st.integers(0, 200))
async def test_no_body_whatever_is_our_fault(shared_cloud: Cloud, body: bytes, cut: int) -> None:
    """Nobody can rent here what they ask for: a 504 is the best answer there is."""
    pieces = [body[:cut], body[cut:]]

    made = await send(shared_cloud, "POST", "/api/instances", pieces, "application/json")
    renamed = await send(shared_cloud, "PUT", "/api/instances/nobody", pieces, "application/json")

    assert made.status in {400, 504}
    assert renamed.status in {400, 404}
