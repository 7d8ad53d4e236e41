"""The sandbox of an instance: bubblewrap around its whole SSH server.

One sandbox an instance, not a login, so that what a renter leaves running is there at the next login.
Inside, the system is read-only, /etc is a short list, home, /tmp, /run, /proc and /dev are its own, and
neither other instances nor our data exist. The SSH server is its process 1: when that ends, all ends.

A sandbox is no wall in the kernel alone. As an ordinary user we map ourselves to uid 1000 in a namespace of
users. As root that would leave renters root outside, with the host's files theirs to read; so there we drop
to an unprivileged user, with no capabilities, before the first line of Python runs.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import vectordash

USER = "ubuntu"
_HOMES = (Path("/home/ubuntu"), Path("/home/renter"))
"""Where a renter is at home: at the first, unless our own code lies there, on a computer of some `ubuntu`."""
NOBODY = 65534
"""Who renters are outside, where we are root."""
_INSIDE = 1000
"""Who renters are inside, where we are not."""

_SYSTEM = tuple(Path("/", name) for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"))
_ETC = tuple(
    Path("/etc", name)
    for name in (
        *(
            "ld.so.cache",
            "ld.so.conf",
            "ld.so.conf.d",
            "alternatives",
            "localtime",
            "timezone",
            "resolv.conf",
        ),
        *(
            "ssl/certs",
            "ssl/openssl.cnf",
            "ca-certificates",
            "pki/tls/certs",
            "pki/ca-trust",
            "crypto-policies",
        ),
        *("profile", "profile.d", "bash.bashrc", "bashrc", "inputrc", "terminfo", "shells", "magic"),
        *("services", "protocols", "mime.types", "os-release", "lsb-release", "debian_version", "python3"),
    )
)
"""What of /etc is worth having inside. Never all of it: it holds the host's secrets."""
_SYS = tuple(Path("/sys", name) for name in ("devices", "bus", "class", "module"))
"""Where programs look for processors, NUMA nodes and cards."""
_TEMPORARY = ("/dev/shm", "/tmp", "/var/tmp")  # noqa: S108 - mounted, not used
_NVIDIA = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
"""Device files that every user of an NVIDIA card needs."""


@dataclass(frozen=True, slots=True)
class NoSandbox:
    """There is none, and why: renters run as the server's user."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A bubblewrap that works here."""

    bwrap: str
    setpriv: str | None
    """The program that drops root's privileges; None if we have none."""

    @property
    def home(self) -> Path:
        """Where the renter's home is inside."""
        return next(home for home in _HOMES if not any(path.is_relative_to(home) for path in _code()))

    @property
    def owner(self) -> int | None:
        """Who must own the renter's home, if not we."""
        return None if self.setpriv is None else NOBODY

    def furnish(self, etc: Path, hostname: str) -> None:
        """Write the made-up files that stand in /etc inside."""
        uid = _INSIDE if self.setpriv is None else NOBODY
        names = [
            "root:x:0:0:root:/root:/usr/sbin/nologin",
            f"{USER}:x:{uid}:{uid}:{USER}:{self.home}:{shell()}",
        ]
        groups = ["root:x:0:", "tty:x:5:", f"{USER}:x:{uid}:"]
        if uid != NOBODY:
            names.append(f"nobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/usr/sbin/nologin")
            groups.append(f"nogroup:x:{NOBODY}:")
        hosts = ["127.0.0.1 localhost", f"127.0.1.1 {hostname}", "::1 localhost ip6-localhost"]
        switch = ["passwd: files", "group: files", "hosts: files dns", "services: files", "protocols: files"]
        files = {
            "passwd": names,
            "group": groups,
            "hosts": hosts,
            "hostname": [hostname],
            "nsswitch.conf": switch,
        }
        for name, lines in files.items():
            (etc / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (etc / name).chmod(0o644)

    def command(
        self,
        home: Path,
        etc: Path,
        hostname: str,
        devices: Iterable[str],
        status: int,
        program: Iterable[str],
    ) -> list[str]:
        """Write the command line that runs a program inside.

        `status` is a descriptor that bubblewrap keeps open for as long as anything lives inside.
        """
        return [
            self.bwrap,
            *("--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-cgroup-try"),
            *("--hostname", hostname, "--new-session", "--as-pid-1", "--json-status-fd", str(status)),
            *(() if self.setpriv else ("--unshare-user", "--uid", str(_INSIDE), "--gid", str(_INSIDE))),
            *_own(devices),
            *_links(),
            *_read_only({**_shared(), **{Path("/etc", file.name): file for file in etc.iterdir()}}),
            *("--perms", "0755", "--dir", str(self.home.parent), "--bind", str(home), str(self.home)),
            *("--chdir", str(self.home), "--remount-ro", "/", "--"),
            *self._drop(),
            *program,
        ]

    def _drop(self) -> tuple[str, ...]:
        if self.setpriv is None:
            return ()
        user = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        return (self.setpriv, *user, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--")


def probe() -> Sandbox | NoSandbox:
    """Find out whether a sandbox works here, by running Python in one. Takes 50 ms, so once."""
    bwrap, setpriv = shutil.which("bwrap"), shutil.which("setpriv")
    if bwrap is None:
        return NoSandbox("bubblewrap is not installed")
    root = os.geteuid() == 0
    if root and setpriv is None:
        return NoSandbox("setpriv, which drops root's privileges, is not installed")
    sandbox = Sandbox(bwrap, setpriv if root else None)
    try:
        _try(sandbox)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return NoSandbox(f"bubblewrap does not work here: {' '.join(said.split())[-300:]}")
    return sandbox


def python() -> list[str]:
    """Write the start of a command line for our Python: nothing of a renter's home is ever imported."""
    return [sys.executable, "-P", "-s", "-B"]


def python_environ() -> dict[str, str]:
    """Make the environment of our Python.

    PATH leads nowhere, for asyncssh, when imported, looks for a library with every compiler it can find
    there, which takes 0.1 s. HOME does too: asyncssh wants one, and that of a renter is none of its business.
    PYTHONPATH is needed where we run from a checkout.
    """
    home = Path(vectordash.__file__).parent.parent
    known = home in {Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))}
    environ = {"PATH": "/nonexistent", "HOME": "/nonexistent", "USER": USER, "LANG": "C.UTF-8"}
    return environ if known else environ | {"PYTHONPATH": str(home)}


def shell() -> str:
    """Choose the shell of renters."""
    return "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"


def _try(sandbox: Sandbox) -> None:
    """Run in a sandbox what proves that it is one."""
    question = "import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name, os.getpid())"
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as status:
        home, etc = Path(folder, "home"), Path(folder, "etc")
        home.mkdir()
        etc.mkdir()
        sandbox.furnish(etc, "probe")
        answer = subprocess.run(
            sandbox.command(home, etc, "probe", (), status.fileno(), [*python(), "-c", question]),
            env=python_environ(),
            pass_fds=[status.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        ).stdout
    if answer.split() != [USER, "1"]:
        raise OSError(f"inside, Python answered {answer!r}")


def _links() -> Iterator[str]:
    """Link the folders of the system that are links outside, such as /bin."""
    for path in _SYSTEM:
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))


def _shared() -> dict[Path, Path]:
    """List what is the same in all sandboxes, read-only: target and source."""
    system = [path for path in _SYSTEM if not path.is_symlink()]
    return {path: path for path in (*system, *_ETC, *_code(), *_SYS) if path.exists()}


def _read_only(binds: dict[Path, Path]) -> Iterator[str]:
    """Bind each source read-only; the folders above a target come first, for bubblewrap makes them 0700."""
    for folder in sorted({above for target in binds for above in target.parents}):
        if not any(folder.is_relative_to(target) for target in binds):
            yield from ("--perms", "0755", "--dir", str(folder))
    for target, source in binds.items():
        if not any(above in binds for above in target.parents):
            yield from ("--ro-bind", str(source), str(target))


def _code() -> Iterator[Path]:
    """List where Python and this package are.

    Only the known parts of each prefix: an environment may be the folder of a whole project, secrets and
    all, and hold our own data.
    """
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    for prefix in sorted(prefixes | {prefix.resolve() for prefix in prefixes}):
        if not prefix.is_relative_to("/usr"):
            yield from (
                prefix / part for part in ("bin", "lib", "lib64", "pyvenv.cfg") if (prefix / part).exists()
            )
    yield Path(vectordash.__file__).parent


def _own(devices: Iterable[str]) -> Iterator[str]:
    """Make what each instance has for itself. Comes first, for our code may lie in, say, the host's /tmp."""
    yield from ("--proc", "/proc", "--dev", "/dev")
    for shared in _TEMPORARY:
        yield from ("--perms", "1777", "--tmpfs", shared)
    yield from ("--tmpfs", "/run", "--symlink", "/run", "/var/run")
    cards = list(devices)
    for device in [*cards, *(f"/dev/{name}" for name in _NVIDIA if cards)]:
        if Path(device).exists():
            yield from ("--dev-bind", device, device)
