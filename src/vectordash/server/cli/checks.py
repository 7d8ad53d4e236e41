"""What `vdserver doctor` looks at: a list of checks, each a function that looks and changes nothing.

A check gives what it measured, what is needed and, where that is missing, the command that mends it. `fail`
is for what keeps the cloud from working, or leaves a secret open; `warn` for what an operator may live with.
Each is asked by itself, so one that cannot look does not hide the others.
"""

import contextlib
import re
import resource
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, ParamSpec

from vectordash.server import vault
from vectordash.server.cli.folder import holder, mend
from vectordash.server.db import facts
from vectordash.server.db.facts import time_of
from vectordash.server.db.integrity import damage
from vectordash.server.db.migrate import SchemaError, demand_head, head, revision
from vectordash.server.db.presence import all_processes
from vectordash.server.db.session import Store
from vectordash.server.drivers.base import Unreachable
from vectordash.server.drivers.local import gpus as cards
from vectordash.server.drivers.local.sandbox import Sandbox, probe
from vectordash.server.instances import oversight
from vectordash.server.instances.store import pairs_left
from vectordash.server.machines import doubt
from vectordash.server.machines import store as machines
from vectordash.server.machines.listing import state
from vectordash.server.machines.store import Orphan
from vectordash.server.settings import Settings
from vectordash.server.vault import VaultError
from vectordash.wire.errors import Refusal

P = ParamSpec("P")

Result = Literal[
    "ok",
    "warn",  # it works, but less well, or not for long
    "fail",  # it does not work
]

_LEAST_DISK = 1.0
"""GB below which nothing may be written soon."""
_LEAST_FILES = 1024
_LEAST_WATCHERS = 128
_LATE = timedelta(minutes=1)
_SILENT = timedelta(seconds=10)
"""A process that has not shown a sign of life for so long is not counted."""
_ANSWER = 3.0
"""Seconds that the server has to answer."""


@dataclass(frozen=True, slots=True)
class Check:
    """What came of a check."""

    check: str
    result: Result
    measured: str
    needed: str
    mend: str = ""
    """The command that mends it, or what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What is looked at."""

    settings: Settings
    now: datetime
    serving: str | None
    """What the lock says of the server that runs."""

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.settings.data


def examine(settings: Settings, now: datetime) -> Iterator[Check]:
    """Make every check that can be made."""
    one = Installation(settings, now, holder(settings.data))
    for check in _OF_THE_COMPUTER:
        yield _made(check, one)
    if not settings.database and not (one.data / "store.db").exists():
        yield Check("store", "fail", f"no cloud in {one.data}", "one that was started", "vdserver up")
        return
    for check in _OF_THE_FOLDER if not settings.database else (_key_file,):
        yield _made(check, one)
    store = Store(settings.store_url, readers=1)
    try:
        yield from _of_the_store(one, store)
    finally:
        store.close()


def _of_the_store(one: Installation, store: Store) -> Iterator[Check]:
    yield (sound := _made(_store, one, store))
    if sound.result != "ok":
        return
    one = replace(one, now=store.ask(time_of) or one.now)
    for check in (_processes, *_OF_THE_STORE) if store.shared else _OF_THE_STORE:
        yield _made(check, one, store)


def _made(check: Callable[P, Check], *what: P.args, **how: P.kwargs) -> Check:
    """Make one check; one that cannot look has failed, and hides no other."""
    try:
        return check(*what, **how)
    except (OSError, Refusal, subprocess.SubprocessError) as error:
        name = check.__name__.strip("_").replace("_", " ")
        return Check(name, "fail", f"it cannot be looked at: {error}", "that it can")


# --- the computer ------------------------------------------------------------------------------------------


def _python(_one: Installation) -> Check:
    """The interpreter is one that we know."""
    found = ".".join(map(str, sys.version_info[:3]))
    known = sys.version_info >= (3, 11)
    return Check("python", "ok" if known else "fail", found, "3.11 or later", "" if known else "script/setup")


def _openssh(_one: Installation) -> Check:
    """Whoever rents from this computer has an SSH client."""
    ssh = shutil.which("ssh")
    if ssh is None:
        return Check(
            "openssh", "warn", "no ssh here", "the OpenSSH client", "sudo apt install openssh-client"
        )
    said = subprocess.run([ssh, "-V"], capture_output=True, text=True, check=False, timeout=10)
    return Check("openssh", "ok", (said.stderr or said.stdout).split(",")[0].strip(), "the OpenSSH client")


def _sandbox(_one: Installation) -> Check:
    """Renters can be shut in."""
    found = probe()
    if isinstance(found, Sandbox):
        return Check("sandbox", "ok", "bubblewrap works", "bubblewrap")
    mend = "sudo apt install bubblewrap" if "install" in found.reason else "bwrap --ro-bind / / true"
    return Check("sandbox", "warn", f"{found.reason}: renters run as you", "bubblewrap", mend)


def _driver(one: Installation) -> Check:
    """The real GPUs can be read; no driver at all means simulated ones."""
    needed = "NVIDIA's driver, or none"
    if one.settings.simulate:
        return Check("gpu driver", "ok", "simulated, by the setting", needed)
    try:
        found = cards.real()
    except Unreachable as error:
        return Check("gpu driver", "fail", str(error), needed, "nvidia-smi")
    return Check("gpu driver", "ok", f"{len(found)} GPUs" if found else "none: simulated GPUs", needed)


def _files(one: Installation) -> Check:
    """The server may open as many files as it has connections and waiters."""
    whose, soft = "here", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if (pid := _pid(one)) is not None:
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            whose, soft = "of the server", resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    enough = soft == resource.RLIM_INFINITY or soft >= _LEAST_FILES
    return Check(
        "open files",
        "ok" if enough else "warn",
        f"{'any number' if soft == resource.RLIM_INFINITY else soft} {whose}",
        f"{_LEAST_FILES} or more",
        "" if enough else "ulimit -n 65536, then vdserver up",
    )


def _watchers(_one: Installation) -> Check:
    """What renters run may watch files: editors' servers do."""
    name = "fs.inotify.max_user_instances"
    try:
        allowed = int(Path("/proc/sys", *name.split(".")).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return Check("inotify", "warn", f"{name} cannot be read", f"{_LEAST_WATCHERS} or more")
    enough = allowed >= _LEAST_WATCHERS
    mend = "" if enough else f"sudo sysctl -w {name}=512"
    return Check(
        "inotify", "ok" if enough else "warn", f"{allowed} watchers", f"{_LEAST_WATCHERS} or more", mend
    )


_OF_THE_COMPUTER: tuple[Callable[[Installation], Check], ...] = (
    _python,
    _openssh,
    _sandbox,
    _driver,
    _files,
    _watchers,
)


# --- the data folder, and who serves it --------------------------------------------------------------------


def _folder(one: Installation) -> Check:
    """Nobody else can look into the data folder."""
    found = one.data.stat()
    closed = not stat.S_IMODE(found.st_mode) & 0o077
    mode = f"0{stat.S_IMODE(found.st_mode):03o}, of user {found.st_uid}"
    return Check(
        "data folder",
        "ok" if closed else "fail",
        mode,
        "0700",
        "" if closed else f"chmod 700 {one.data}",
    )


def _key_file(one: Installation) -> Check:
    """Nobody else can read the key that opens the secrets."""
    file = one.data / "encryption.key"
    if one.settings.encryption_keys:
        return Check("key file", "ok", "the key comes from VECTORDASH_ENCRYPTION_KEYS", "0600")
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        return Check("key file", "fail", f"no {file}", "0600", f"cp BACKUP {file}; chmod 600 {file}")
    closed = not mode & 0o077
    return Check(
        "key file", "ok" if closed else "fail", f"0{mode:03o}", "0600", "" if closed else f"chmod 600 {file}"
    )


def _disk(one: Installation) -> Check:
    """There is room for the store and for what renters write."""
    free = shutil.disk_usage(one.data).free / 2**30
    enough = free >= _LEAST_DISK
    mend = "" if enough else f"du -xh -d 2 {one.data} | sort -h | tail"
    return Check(
        "disk", "ok" if enough else "fail", f"{free:.1f} GB free", f"{_LEAST_DISK:.0f} GB or more", mend
    )


def _server(one: Installation) -> Check:
    """Who serves this folder answers, and can serve."""
    needed = "/healthz and /readyz answer 200"
    if one.serving is None:
        return Check("server", "warn", "none runs on this folder", needed, "vdserver up")
    address = re.search(r"http://\S+", one.serving)
    if address is None:
        return Check("server", "warn", "one is just starting", needed, "vdserver doctor")
    for path in ("/healthz", "/readyz"):
        if (fault := _answer(address[0] + path)) is not None:
            mend = f"read its log; if it hangs: kill -9 {_pid(one)}, then vdserver up"
            return Check("server", "fail", f"{one.serving}: {path} {fault}", needed, mend)
    return Check("server", "ok", one.serving, needed)


def _answer(url: str) -> str | None:
    """Ask the server, on loopback and past any proxy; gives what is wrong."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=_ANSWER):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"answers {error.code}: {error.read(200).decode(errors='replace')}"
    except OSError as error:
        return f"does not answer: {getattr(error, 'reason', None) or error}"


def _pid(one: Installation) -> int | None:
    """Who serves, as the lock says."""
    found = re.match(r"process (\d+)", one.serving or "")
    return None if found is None else int(found[1])


_OF_THE_FOLDER: tuple[Callable[[Installation], Check], ...] = (_folder, _key_file, _disk, _server)


# --- the store ---------------------------------------------------------------------------------------------


def _store(one: Installation, store: Store) -> Check:
    """The store can be read, is whole and of this program's revision."""
    needed = f"whole, of revision {head()}"
    from sqlalchemy.exc import DatabaseError  # noqa: PLC0415 - named where it is caught

    try:
        broken = store.ask(damage)
        found = store.ask(revision)
    except DatabaseError as error:
        broken, found = str(error.orig), None
    if broken is not None:
        return Check("store", "fail", broken, needed, f"cp BACKUP {one.data / 'store.db'}")
    try:
        demand_head(found, mend(one.settings))
    except SchemaError:
        newer = found is not None and found > head()
        return Check(
            "store",
            "fail",
            f"revision {found}",
            needed,
            "use the newer program" if newer else mend(one.settings),
        )
    return Check("store", "ok", f"whole, of revision {found}", needed)


def _processes(one: Installation, store: Store) -> Check:
    """Of what a cloud needs, at least one lives."""
    alive = [each for each in store.ask(all_processes) if one.now - each.beaten_at < _SILENT]
    kinds = [each.kind for each in alive]
    named = ", ".join(f"{each.kind} on {each.host} (process {each.pid})" for each in alive)
    missing = [kind for kind in ("api", "reconciler") if kind not in kinds and "up" not in kinds]
    mend = "; ".join(f"vdserver {kind}" for kind in missing)
    return Check(
        "processes",
        "warn" if missing else "ok",
        named or "none",
        "an API and a reconciler",
        mend,
    )


def _key(one: Installation, store: Store) -> Check:
    """The loaded key opens the secrets."""
    wanted = store.ask(facts.fact, "encryption key")
    needed = f"key {wanted}"
    if wanted is None:
        return Check("encryption key", "warn", "none was used yet", "a key", "vdserver up")
    file = one.data / "encryption.key"
    text = one.settings.encryption_keys
    mend = f"cp BACKUP {file}, or set VECTORDASH_ENCRYPTION_KEYS"
    try:
        loaded = vault.from_text(text) if text else vault.from_file(file)
    except (VaultError, OSError, UnicodeDecodeError) as error:
        return Check("encryption key", "fail", str(error), needed, mend)
    right = loaded.holds(wanted)
    return Check(
        "encryption key", "ok" if right else "fail", f"key {loaded.current}", needed, "" if right else mend
    )


def _stock(one: Installation, store: Store) -> Check:
    """Key pairs are ready, so that no POST waits for one."""
    left, size = store.ask(pairs_left), one.settings.key_stock
    enough = left > 0 or size == 0
    mend = "" if enough else "vdserver up" if one.serving is None else "wait a minute, then vdserver doctor"
    return Check(
        "key stock", "ok" if enough else "warn", f"{left} pairs", f"1 to {size}" if size else "none", mend
    )


def _ports(one: Installation, store: Store) -> Check:
    """There are SSH ports for the next instances."""
    first, last = one.settings.port_range
    held = {port for port in store.ask(oversight.held_ports, "local") if first <= port <= last}
    other = {port for port in _listening() if first <= port <= last} - held
    free = last - first + 1 - len(held) - len(other)
    measured = f"{free} of {first}-{last} free, {len(held)} held, {len(other)} in use by other programs"
    if not free:
        return Check("ports", "fail", measured, "1 or more free", "VECTORDASH_PORTS=20000-31999 vdserver up")
    return Check("ports", "ok", measured, "1 or more free")


def _listening() -> set[int]:
    """List the TCP ports that somebody listens on."""
    ports = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, kind, *_ = line.split()
                if kind == "0A":
                    ports.add(int(local.rpartition(":")[2], 16))
    return ports


def _orphans(one: Installation, store: Store) -> Check:
    """Nothing of ours runs that the store does not know."""
    found = store.ask(machines.all_orphans)
    if not found:
        return Check("orphans", "ok", "none", "none")
    named = ", ".join(_orphan(orphan) for orphan in found)
    if all(orphan.purge for orphan in found):
        mend = "vdserver up" if one.serving is None else "wait a minute, then vdserver doctor"
        return Check("orphans", "warn", named, "none", mend)
    mend = "vdserver instance orphans, then for each: vdserver instance adopt NAME --for EMAIL, or purge NAME"
    return Check("orphans", "fail", named, "none", mend)


def _orphan(orphan: Orphan) -> str:
    decided = ", to be removed" if orphan.purge else ""
    return f"{orphan.name} on {orphan.cluster} since {orphan.found_at:%Y-%m-%d %H:%M}{decided}"


def _suspects(_one: Installation, store: Store) -> Check:
    """No GPU is withheld for a failure. Those that an orphan may hold are not for the operator to clear."""
    held = store.ask(machines.held_by_orphans)
    found = [gpu for gpu in store.ask(machines.all_gpus) if gpu.suspect_why and gpu.id not in held]
    if not found:
        return Check("suspect gpus", "ok", "none", "none")
    why = "; ".join(f"GPU {gpu.id}: {gpu.suspect_why}" for gpu in found)
    failed = " ".join(str(gpu.id) for gpu in found if gpu.suspect_why != doubt.WHY)
    if not failed:
        return Check("suspect gpus", "warn", why, "none", "vdserver up")
    return Check("suspect gpus", "fail", why, "none", f"vdserver gpu clear {failed}")


def _stuck(one: Installation, store: Store) -> Check:
    """Every instance that something is to be done for is worked on."""
    late = store.ask(oversight.stuck, one.now - _LATE)
    if not late:
        return Check("instances", "ok", "none waits", "none due for over a minute")
    measured = f"{len(late)} due for over a minute: {', '.join(late[:5])}{', …' if len(late) > 5 else ''}"
    if one.serving is None:
        return Check("instances", "warn", measured, "none due for over a minute", "vdserver up")
    mend = f"vdserver instance show {late[0]}"
    return Check("instances", "fail", measured, "none due for over a minute", mend)


def _offered(one: Installation, store: Store) -> Check:
    """There is something to rent."""
    known = store.ask(machines.all_gpus)
    words = [state(gpu, one.now) for gpu in known]
    listed = sum(gpu.listed for gpu in known)
    each = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    measured = f"{listed} of {len(known)} listed" + (f" ({each})" if known else "")
    if listed:
        return Check("gpus", "ok", measured, "1 or more listed")
    mend = "vdserver gpu list all --price 0.64" if known else "vdserver up"
    return Check("gpus", "fail", measured, "1 or more listed", mend)


_OF_THE_STORE: tuple[Callable[[Installation, Store], Check], ...] = (
    _key,
    _stock,
    _ports,
    _orphans,
    _suspects,
    _stuck,
    _offered,
)
