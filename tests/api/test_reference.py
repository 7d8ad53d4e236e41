"""Every example of the published API reference, read out of it and played against the API.

`reference.txt` beside this file is the reference as it was published. Numbers are compared digit for digit:
`6.80` is not `6.8`.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from cloud import Answer, Cloud
from vectordash.server import app
from vectordash.server.accounts.store import user_id_of
from vectordash.server.accounts.tables import wallets
from vectordash.server.drivers.base import SeenMachine
from vectordash.server.drivers.fake import simple_machine

together = pytest.mark.asyncio(loop_scope="module")
"""For tests that leave nothing behind: all of them use one cloud."""
alone = pytest.mark.asyncio

THEN = datetime(2018, 7, 1, 4, 23, 58, tzinfo=UTC)
"""When the examples play."""
REFERENCE = Path(__file__).with_name("reference.txt").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^##? |\Z)", REFERENCE, re.MULTILINE | re.DOTALL))
ACCOUNT, GPUS, LIST, CREATE, DELETE = (
    "Retrieve account information",
    "Retrieve available GPUs",
    "Retrieve all active instances",
    "Create an instance",
    "Delete an instance",
)


def decode(text: str) -> Any:
    """Decode JSON, real numbers kept as they are written."""
    return json.loads(text, parse_float=lambda digits: f"real {digits}")


def examples(section: str) -> list[Any]:
    """Give the JSON examples of a section, in order."""
    blocks = re.findall(r"```json\n(.*?)```", SECTIONS[section], re.DOTALL)
    return [decode(with_its_comma(block) if section == ACCOUNT else block) for block in blocks]


def with_its_comma(block: str) -> str:
    """The account's example lacks a comma after `vetted_host`."""
    assert '"vetted_host": false\n' in block
    return block.replace('"vetted_host": false\n', '"vetted_host": false,\n')


def headers(section: str, kind: str) -> dict[str, str]:
    """Give the documented `Request Headers` or `Response Headers` of a section."""
    block = re.search(rf">{kind} Headers</p>\n\n```bash\n(.*?)```", SECTIONS[section], re.DOTALL)
    assert block
    return dict(line.split(": ", 1) for line in block[1].strip().splitlines())


def request_of(section: str) -> tuple[str, str]:
    """Give the documented method and path."""
    found = re.search(r"`(GET|POST|DELETE) (/api/[^`]*)`", SECTIONS[section])
    assert found
    return found[1], found[2]


def table(section: str) -> list[tuple[str, str]]:
    """Give names and types of the last table of fields of a section."""
    rows = re.findall(r"^([\w~]+) \| ([\w()]+(?: \(Y[^)]*\))?) \| ", SECTIONS[section], re.MULTILINE)
    return [(name, kind) for name, kind in rows if name not in {"Name", "Header"}]


def options(section: str) -> list[str]:
    """Give a numbered list of options."""
    return re.findall(r"^\d+\. (.+)$", SECTIONS[section], re.MULTILINE)


async def ask(cloud: Cloud, section: str, *, key: str = "", token: str = "", body: Any = None) -> Answer:
    """Send a documented request with exactly the documented headers."""
    method, path = request_of(section)
    sent = {name.lower(): value for name, value in headers(section, "Request").items()}
    if "authorization" in sent:
        assert re.fullmatch(r"Bearer \w+", sent["authorization"])
        sent["authorization"] = f"Bearer {token or cloud.token}"
    path = path.replace("<INSTANCE_ID>", key)
    answer = await cloud.raw(
        method, path, list(sent.items()), b"" if body is None else json.dumps(body).encode()
    )
    for name, value in headers(section, "Response").items():
        assert answer.headers[name.lower()] == value
    return answer


def shape(value: Any) -> Any:
    """Keys in their order, with what is below them; everything else by its type."""
    if isinstance(value, dict):
        return [(name, shape(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "real" if isinstance(value, str) and value.startswith("real ") else type(value).__name__


def machine(name: str, model: str, *, cpu: str, address: str, storage: int, vram: int = 8) -> SeenMachine:
    """A machine of one card, so large that an instance gets 16 GB of RAM and `storage` GB of disk."""
    plain = simple_machine(name, model, vram=vram)
    return replace(plain, cpu=cpu, address=address, ram=18, disk=-(-storage * 10 // 9))


THREADRIPPER = {"cpu": "AMD Ryzen Threadripper 1950X", "address": "216.3.128.12", "storage": 500}
CORE_I9 = {"cpu": "Intel Core i9-7980XE", "address": "216.3.128.13", "storage": 250}


async def as_of_then(cloud: Cloud) -> Cloud:
    """Move a cloud to the time of the examples, and to their ports."""
    cloud.clock.now = THEN
    await app.join(cloud.plane.store, cloud.clock, "fake", cloud.driver, (25852, 26000))
    await cloud.stock_keys(4)
    return cloud


@alone
async def test_account(cloud: Cloud) -> None:
    [example] = examples(ACCOUNT)
    token = await cloud.new_renter(example["email"])

    def add_wallets(connection: Any) -> None:
        rows = [{"currency": name, "address": address} for name, address in example["wallets"].items()]
        user_id = user_id_of(connection, example["email"])
        connection.execute(insert(wallets), [{"user_id": user_id, **row} for row in reversed(rows)])

    await cloud.plane.store.write(add_wallets)

    answer = await ask(cloud, ACCOUNT, token=token)

    assert decode(answer.body.decode()) == example
    assert shape(decode(answer.body.decode())) == shape(example)


@alone
async def test_an_account_shows_only_the_wallets_that_its_user_added(cloud: Cloud) -> None:
    answer = await ask(cloud, ACCOUNT)

    assert answer.json["wallets"] == {}
    assert list(answer.json) == list(examples(ACCOUNT)[0])


@alone
async def test_gpus(new_cloud: Any) -> None:
    [example] = examples(GPUS)
    cloud = await new_cloud(
        simple_machine("m1", "NVIDIA TITAN V", vram=12),
        simple_machine("m2", "NVIDIA GeForce GTX 1080 Ti", vram=11),
    )
    await cloud.list_gpus(gpu_1="0.85", gpu_2="0.64")
    await cloud.change_listing(2, available_until=datetime(2019, 3, 1, tzinfo=UTC))
    await as_of_then(cloud)

    answer = await ask(cloud, GPUS)

    told = decode(answer.body.decode())
    assert shape(told) == shape(example)
    # The reference promises no order of the rows; ours is the catalogue's.
    assert told["gpus"] == sorted(example["gpus"], key=lambda gpu: str(gpu["type"]))


@alone
async def test_list_of_instances(new_cloud: Any) -> None:
    """The active one has run for 8 hours at 0.85: 6.80. The pending one shows its first hour."""
    [example] = examples(LIST)
    active, pending = example["instances"]
    cloud = await new_cloud(
        machine("m1", "NVIDIA GeForce GTX 1080 Ti", vram=11, **THREADRIPPER),
        machine("m2", "NVIDIA GeForce GTX 1070 Ti", **CORE_I9),
    )
    await cloud.list_gpus(gpu_1="0.85", gpu_2="0.69")
    await as_of_then(cloud)
    await cloud.rent(active["name"], "1080 ti", image=active["image"])
    await cloud.settle()
    await cloud.rent(pending["name"], "1070 ti")
    cloud.clock.move(hours=8)

    answer = await ask(cloud, LIST)

    told = decode(answer.body.decode())
    assert shape(told) == shape(example)
    by_name = {one["name"]: one for one in told["instances"]}
    assert without_chance(by_name["instance1"]) == without_chance(active)
    assert without_chance(by_name["instance2"]) == without_chance(pending)
    assert by_name["instance1"]["physical_gpus"] == [{"id": 1, "type": "1080 ti"}]


def without_chance(instance: dict[str, Any]) -> dict[str, Any]:
    """An instance without its key and pem; of its GPUs (ours have one), the type of the first."""
    kept = {name: value for name, value in instance.items() if name not in {"key", "pem"}}
    return kept | {"physical_gpus": instance["physical_gpus"][0]["type"]}


@alone
async def test_creation(new_cloud: Any) -> None:
    wish, example = examples(CREATE)
    cloud = await new_cloud(machine("m1", "Tesla V100-SXM2-16GB", vram=16, **THREADRIPPER))
    await cloud.list_gpus(gpu_1="0.69")
    await as_of_then(cloud)

    answer = await ask(cloud, CREATE, body=wish)

    told = decode(answer.body.decode())
    assert shape(told) == shape(example)
    assert without_chance(told["instance"]) == without_chance(example["instance"])
    assert re.fullmatch(r"[0-9a-f]{12}", told["instance"]["key"])
    assert told["instance"]["pem"].startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    assert told["instance"]["pem"].endswith("-----END RSA PRIVATE KEY-----\n")


@alone
async def test_deletion_has_no_body(cloud: Cloud) -> None:
    made = await cloud.rent()

    answer = await ask(cloud, DELETE, key=made["key"])

    assert (answer.status, answer.body) == (204, b"")


@alone
async def test_the_objects_have_the_documented_fields_in_the_documented_types(cloud: Cloud) -> None:
    await cloud.rent()
    kinds = {
        "string": str,
        "integer": int,
        "real": (int, float),
        "boolean": bool,
        "date": (str, type(None)),
        "array(physical_gpu)": list,
    }
    [instance] = (await ask(cloud, LIST)).json["instances"]
    [physical] = instance["physical_gpus"]
    gpu = (await ask(cloud, GPUS)).json["gpus"][0]

    for told, section in ((instance, "Instance"), (physical, "Physical GPU"), (gpu, "GPU")):
        assert list(told) == [name for name, _ in table(section)]
        for name, kind in table(section):
            # The table says integer of `teraflops`, its example 15.0: the example stands.
            expected = kinds["real"] if name == "teraflops" else kinds[kind]
            assert isinstance(told[name], expected), name


@together
@pytest.mark.parametrize("gpu", options("gpu"))
async def test_every_documented_gpu_is_known(shared_cloud: Cloud, gpu: str) -> None:
    answer = await shared_cloud.call("POST", "/api/instances", {"name": "one", "gpu": gpu})
    await shared_cloud.clear()

    assert answer.status in {200, 504}
    assert answer.status == 200 or answer.error["reason"] == "gpu_unavailable"


@together
@pytest.mark.parametrize("image", options("image"))
async def test_every_documented_image_can_be_had(shared_cloud: Cloud, image: str) -> None:
    made = await shared_cloud.rent(image=image)
    await shared_cloud.clear()

    assert made["image"] == image


@together
async def test_the_default_image_is_the_documented_one(shared_cloud: Cloud) -> None:
    made = await shared_cloud.rent()
    await shared_cloud.clear()

    assert f'default is "{made["image"]}"' in SECTIONS[CREATE]


@together
@pytest.mark.parametrize(
    "field", [name.strip("~") for name, _ in table(CREATE) if name.startswith("~~")], ids=str
)
async def test_fields_documented_as_not_supported_are_refused(shared_cloud: Cloud, field: str) -> None:
    wish = {"name": "one", "gpu": "1080 ti", field: 16}

    answer = await shared_cloud.call("POST", "/api/instances", wish)

    assert answer.status == 400
    assert answer.error["fields"] == {field: "not supported yet"}


@alone
async def test_charges_of_the_examples_are_duration_times_price() -> None:
    for example in examples(LIST)[0]["instances"]:
        price, charge = (Decimal(example[name].split()[1]) for name in ("hourly_price", "estimated_charge"))

        assert example["duration"] * price == charge
