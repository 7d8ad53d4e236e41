"""What the operator can set: one frozen struct, and the only reader of the environment.

`VECTORDASH_<NAME>` in the environment wins over a line `name = …` of the TOML file named by
`VECTORDASH_CONFIG`, which wins over the default. An unknown name or a bad value is refused at once; an
empty variable counts as not set.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from vectordash.server.trouble import Trouble

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


_NOT_OURS = frozenset({"CONFIG", "BASE_URL", "TOKEN", "GPU", "INSTANCE"})
"""Names in the environment that are no settings: the clients', and an instance's mark of itself."""


_POSTGRES = re.compile(r"^postgres(ql)?://")


class SettingsError(Trouble):
    """A setting is wrong; the message says which, why, and what it may be."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting, with its default. A string behind a field is its documentation."""

    host: str = "127.0.0.1"
    """The address that the API listens on."""
    port: Annotated[int, Meta(ge=1, le=65_535)] = 8000
    """The port that the API listens on."""
    data: Path = Path(".vectordash")
    """The folder of everything that must not be lost: store, encryption key, instances' homes."""
    database: str = ""
    """`postgresql://USER:PASSWORD@HOST/NAME`: keep the store there, for more than one server. Empty: the file
    `store.db` in the data folder. What it leaves out comes from PGPASSFILE and libpq's other variables."""
    cluster: str = "local"
    """Where instances run: `local`, this computer; or `fake:SOCKET`, a simulation for tests and benches that
    `python -m vectordash.server.drivers.fake SOCKET` serves."""
    encryption_keys: str = ""
    """Base64 of 32 bytes each, the current one first, separated by commas. Empty: the file
    `encryption.key` in the data folder, made for an empty store."""
    simulate: bool = False
    """Offer simulated GPUs even if the machine has real ones."""
    payments: Literal["free", "test"] = "test"
    """`free`: the operator vouches for everybody. `test`: an account needs a payment method."""
    billing: Literal["hour", "second"] = "hour"
    """`hour`: started hours. `second`: the exact time."""
    maintenance: bool = False
    """Answer everything under `/api/` with 503; instances go on."""
    gpus_at_once: Count = 0
    """How many GPUs an account may hold at once, unless it has a limit of its own. 0: any number."""
    hours_an_instance: Count = 0
    """After how many hours an instance ends by itself, unless its account has a limit. 0: never."""
    gpu_hours_a_month: Count = 0
    """How many started GPU-hours an account may use in a calendar month (UTC). 0: any number."""
    least_hours: Annotated[float, Meta(ge=0, le=8_760)] = 1.0
    """A GPU is offered only while it is available for at least this many hours more."""
    grace: Seconds = 600.0
    """How long an active instance may be out of sight before it counts as lost."""
    poll: Seconds = 5.0
    """How often clusters are listed when nothing else gives a reason to."""
    machine_timeout: Seconds = 30.0
    """How long a cluster may not answer before its machines count as offline."""
    ports: Annotated[str, Meta(pattern=r"^\d{1,5}-\d{1,5}$")] = "20000-29999"
    """SSH ports of the instances of the `local` cluster. Keep clear of the kernel's own range."""
    requests_a_second: Annotated[int, Meta(ge=1)] = 50
    """Requests a second that a token may make for long; counted in each process."""
    request_burst: Annotated[int, Meta(ge=1)] = 1000
    """Requests that a token may make at once."""
    anonymous_requests_a_second: Annotated[int, Meta(ge=1)] = 20
    """The same, an address without a token."""
    anonymous_request_burst: Annotated[int, Meta(ge=1)] = 200
    """The same, an address without a token."""
    key_stock: Annotated[int, Meta(ge=0, le=4096)] = 64
    """RSA key pairs kept ready, so that no POST waits for one to be made."""
    log: Literal["people", "json"] = "people"
    """The form of a log line."""

    @property
    def store_url(self) -> str:
        """SQLAlchemy's URL of the store; a folder's name may hold what means something in a URL."""
        if self.database:
            return _POSTGRES.sub("postgresql+psycopg://", self.database)
        return f"sqlite:///{quote(str(self.data / 'store.db'))}"

    @property
    def base_url(self) -> str:
        """Where the API is found."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether the API can be reached from this computer only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def port_range(self) -> tuple[int, int]:
        """First and last SSH port of the `local` cluster."""
        first, last = (int(end) for end in self.ports.split("-"))
        return first, last


def load(environment: Mapping[str, str] = os.environ, **given: object) -> Settings:
    """Read the settings; `given` are the command line's, and win over all. Raises `SettingsError`."""
    values: dict[str, object] = {}
    if config := environment.get("VECTORDASH_CONFIG"):
        values |= _file(Path(config))
    values |= _environment(environment)
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"A setting is wrong: {error}. Settings come from VECTORDASH_… and the file "
            "named by VECTORDASH_CONFIG."
        ) from error
    if settings.database and not _POSTGRES.match(settings.database):
        raise SettingsError(
            "VECTORDASH_DATABASE takes postgresql://USER:PASSWORD@HOST/NAME. Leave it empty for SQLite in "
            "the data folder."
        )
    if settings.database.partition("://")[2].partition("?")[0].count("@") > 1:
        raise SettingsError(
            "VECTORDASH_DATABASE has two @: in a name or a password write @ as %40, / as %2F."
        )
    if settings.cluster != "local" and not settings.cluster.startswith("fake:/"):
        raise SettingsError(
            f"VECTORDASH_CLUSTER is {settings.cluster}: it takes `local`, or `fake:/PATH/OF/SOCKET`."
        )
    first, last = settings.port_range
    if not 1024 <= first <= last <= 65_535:
        raise SettingsError(f"VECTORDASH_PORTS is {settings.ports}: it takes FIRST-LAST within 1024-65535.")
    return settings


def _environment(environment: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for variable, value in environment.items():
        name = variable.removeprefix("VECTORDASH_")
        if name in {variable, *_NOT_OURS} or not value:
            continue
        if name != name.upper() or name.lower() not in Settings.__struct_fields__:
            raise SettingsError(f"There is no setting {variable}.")
        name = name.lower()
        values[name] = _flag(value) if Settings.__annotations__[name] is bool else value
    return values


def _file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error}.") from error


def _flag(value: str) -> object:
    """The environment's way of saying yes and no; anything else is left for the check to refuse."""
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
        value.lower(), value
    )


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    raise ValueError("Expected a path")
