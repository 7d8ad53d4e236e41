"""The two databases that a store can be kept in, and a private PostgreSQL for the tests that want one.

A pytest plugin. The fixture `database` runs a test once on SQLite and once on PostgreSQL; what it gives
makes stores. The server is the distribution's program, started once a session on a free port in a folder of
its own, never the system's service; as root it runs as nobody, since PostgreSQL refuses root. Each store is a
database of its own; to make one takes ten times as long as to empty one, so they are used again.
"""

import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest

from needs import postgres_program
from vectordash.server import app
from vectordash.server.db.session import Store
from vectordash.server.settings import Settings

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")


@dataclass
class Postgres:
    """A private server."""

    folder: Path
    port: int
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    free: list[str] = field(default_factory=list)
    """Databases as `template`, which nobody uses."""

    def url(self, name: str) -> str:
        """The URL of a database on it, as an operator would write it."""
        return f"postgresql://vectordash:secret@127.0.0.1:{self.port}/{name}"

    def do(self, *statements: str) -> None:
        """Run statements outside of any store's database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def new(self, template: str = "template0") -> str:
        """Make a database; gives its name."""
        name = f"store{next(self.numbers)}"
        self.do(f"create database {name} template {template} {self._strategy}")
        return name

    @functools.cached_property
    def _strategy(self) -> str:
        """How a database is copied the quickest, where there is a choice: by its files, not by a log."""
        with psycopg.connect(self.url("postgres")) as connection:
            return "strategy file_copy" if connection.info.server_version >= 150_000 else ""

    @functools.cached_property
    def template(self) -> str:
        """A database with all tables, before anything happened in it."""
        name = self.new()
        store = Store(Settings(database=self.url(name)).store_url, readers=1)
        app.migrate(store)
        store.close()
        self.keep(name)
        return name

    def take(self) -> str:
        """Give a database with all tables, before anything happened in it."""
        return self.free.pop() if self.free else self.new(self.template)

    def give_back(self, name: str) -> None:
        """Let a database that was taken be used again."""
        self.restore(name)
        self.free.append(name)

    def keep(self, name: str) -> None:
        """Note what is in a database's tables, in a schema beside them."""
        with psycopg.connect(self.url(name)) as connection:
            connection.execute("drop schema if exists beginning cascade")
            connection.execute("create schema beginning")
            for table in _tables(connection):
                connection.execute(f"create table beginning.{table} as table {table}".encode())
            connection.execute(
                "create table beginning.numbers_given as select sequencename, last_value from pg_sequences"
                " where schemaname = 'public'"
            )

    def restore(self, name: str) -> None:
        """Put back what was noted, whoever is still connected; the tables must be the same."""
        with psycopg.connect(self.url(name)) as connection:
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            connection.execute("set local session_replication_role = replica")  # in any order
            tables = _tables(connection)
            changes = [f"delete from {table}" for table in tables]  # noqa: S608
            changes += [f"insert into {table} table beginning.{table}" for table in tables]
            connection.execute(";".join(changes).encode())
            connection.execute(
                "select setval(format('%I', sequencename)::regclass, coalesce(last_value, 1),"
                " last_value is not null) from beginning.numbers_given"
            )

    def drop(self, name: str) -> None:
        """Forget a database, whoever is still connected to it."""
        self.do(f"drop database if exists {name} with (force)")

    def pids(self) -> list[int]:
        """List the server's processes, the first one first."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.control("start", "-w", "-t", "60", "-l", str(self.folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is as good as a power cut."""
        self.control("stop", "-w", "-t", "60", "-m", mode)

    def control(self, *arguments: str) -> None:
        """Run `pg_ctl`."""
        _run_as_nobody("pg_ctl", "-D", str(self.folder / "data"), *arguments)


def _tables(connection: psycopg.Connection[Any]) -> list[str]:
    return [
        name for (name,) in connection.execute("select tablename from pg_tables where schemaname = 'public'")
    ]


def make_postgres(folder: Path, **settings: str) -> Postgres:
    """Make a server and start it. `settings` of PostgreSQL win over what makes tests quick."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, _nobody().pw_uid, _nobody().pw_gid)
    password = folder / "password"
    password.write_text("secret")
    password.chmod(0o644)
    _run_as_nobody(
        "initdb",
        *("-D", str(folder / "data"), "-U", "vectordash", f"--pwfile={password}"),
        *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    chosen = {
        "port": str(port),
        "listen_addresses": "'127.0.0.1'",
        "unix_socket_directories": "''",
        "max_connections": "300",
        "fsync": "off",
        "shared_buffers": "32MB",
        "log_min_messages": "fatal",
        **settings,
    }
    with (folder / "data" / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = {value}\n" for name, value in chosen.items())
    made = Postgres(folder, port)
    made.start()
    return made


@contextlib.contextmanager
def private_postgres(**settings: str) -> Iterator[Postgres]:
    """Have a server for a while."""
    # Below /tmp, where nobody may look for its own folder: a test's own folder is closed to others.
    folder = Path(tempfile.mkdtemp(prefix="vectordash-postgres-"))
    folder.chmod(0o755)
    made = make_postgres(folder / "server", **settings)
    try:
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def _nobody() -> Any:
    return pwd.getpwnam("nobody")


def _run_as_nobody(program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs to its end; as root, as nobody."""
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {"user": _nobody().pw_uid, "group": _nobody().pw_gid, "extra_groups": []}
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    command = [postgres_program(program), *arguments]
    # Its output goes to a file: the server that it starts would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, env=environment, cwd="/", check=False, timeout=120, **who
        )
        output.seek(0)
        assert done.returncode == 0, f"{command}: {output.read()}"


@dataclass
class Database:
    """Where the stores of one test are kept."""

    kind: Kind
    postgres: Postgres | None = None
    taken: dict[Path, str] = field(default_factory=dict)
    made: dict[Path, str] = field(default_factory=dict)
    """Those that are of no use to other tests."""

    def settings(self, folder: Path, **given: Any) -> Settings:
        """Make settings for a data folder with a store that has its tables, the same store each time."""
        if self.postgres is None:
            if not folder.exists():
                folder.mkdir(parents=True, mode=0o700)
                (folder / "store.db").write_bytes(_empty_store())
            return Settings(data=folder, **given)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder not in self.made | self.taken:
            self.taken[folder] = self.postgres.take()
        name = (self.made | self.taken)[folder]
        return Settings(data=folder, database=self.postgres.url(name), **given)

    def copy(self, made: Path, folder: Path) -> None:
        """Make a data folder and its store, or make them anew, like others that nobody uses or changes."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        if self.postgres is None:
            return
        if folder in self.made:
            self.postgres.restore(self.made[folder])
        else:
            self.made[folder] = self.postgres.new((self.made | self.taken)[made])
            self.postgres.keep(self.made[folder])

    def url(self, folder: Path) -> str:
        """Give SQLAlchemy's URL of a store without tables, another one each time."""
        if self.postgres is None:
            return f"sqlite:///{folder / 'empty.db'}"
        name = self.postgres.new()
        self.made[folder / name] = name
        return Settings(database=self.postgres.url(name)).store_url

    def forget(self) -> None:
        """Let go of what was made."""
        if self.postgres is not None:
            for name in self.made.values():
                self.postgres.drop(name)
            for name in self.taken.values():
                self.postgres.give_back(name)
        self.made.clear()
        self.taken.clear()


@functools.cache
def _empty_store() -> bytes:
    """A store's file before anything happened in it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data=Path(folder))
        app.open_store(settings).close()
        return (settings.data / "store.db").read_bytes()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """The private PostgreSQL of this session."""
    with private_postgres() as made:
        yield made


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """The private PostgreSQL of this session, for tests that are marked `needs("postgres")`."""
    made: Postgres = request.getfixturevalue("postgres_server")
    return made


def kinds() -> list[Any]:
    """Both kinds, as parameters; the second needs a program."""
    return [
        pytest.param("sqlite", id="sqlite"),
        pytest.param("postgresql", id="postgresql", marks=pytest.mark.needs("postgres")),
    ]


@pytest.fixture(scope="module", params=kinds())
def shared_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Where the stores of a whole module are kept, on each database."""
    yield from _database(request)


@pytest.fixture(params=kinds())
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Where the stores of one test are kept, on each database."""
    yield from _database(request)


def _database(request: pytest.FixtureRequest) -> Iterator[Database]:
    server = request.getfixturevalue("postgres_server") if request.param == "postgresql" else None
    made = Database(request.param, server)
    yield made
    made.forget()


def wait_until_down(port: int) -> None:
    """Wait until nobody listens there any more."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise AssertionError(f"port {port} still answers")


def kill(postgres: Postgres) -> None:
    """Kill -9 the server's first process."""
    pid = int((postgres.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGKILL)
    wait_until_down(postgres.port)
