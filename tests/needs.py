"""Which programs of the system the tests use, and what becomes of a test whose program is missing.

A pytest plugin and, run as a program, the answer to "what is missing?" for `script/test`: one table serves
both. A test says `@pytest.mark.needs("bwrap", "ssh")`. Where one of them is missing the test is skipped and
the run reports what it left out; where `CI` is `true` it fails instead: a green CI has run everything.
A program that is there but does not work (bubblewrap without user namespaces) counts as missing, with the
reason.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PROGRAMS = {  # the program: Debian's package that brings it
    "bwrap": "bubblewrap",
    "curl": "curl",
    "mount": "mount",
    "postgres": "postgresql",
    "ps": "procps",
    "rsync": "rsync",
    "scp": "openssh-client",
    "sftp": "openssh-client",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tmux": "tmux",
    "unshare": "util-linux",
}

TRIALS = {  # a command that shows that the program works here, for those that may be there in vain
    "bwrap": ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true"],
    "mount": ["sh", "-c", "d=$(mktemp -d) && mount -t tmpfs none $d && umount $d && rmdir $d"],
    "unshare": ["unshare", "--time", "--boottime", "3600", "--fork", "true"],
}


def postgres_program(name: str) -> str:
    """Where one of PostgreSQL's programs is; Debian keeps them off the PATH. The newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(found[-1]) if found else name


def _where(program: str) -> str | None:
    return shutil.which(postgres_program(program) if program == "postgres" else program)


@functools.cache
def fault(program: str) -> str | None:
    """Why the program cannot be used here, in a few words; None where it can."""
    if program not in PROGRAMS:
        raise LookupError(f"tests/needs.py does not know which package brings {program!r}")
    if _where(program) is None:
        return f"{program} is missing (Debian: {PROGRAMS[program]})"
    if program not in TRIALS:
        return None
    trial = subprocess.run(TRIALS[program], capture_output=True, text=True, check=False, timeout=10)
    return f"{program} does not work here: {trial.stderr.strip()}" if trial.returncode else None


def left_out() -> Iterator[str]:
    """Every fault of a program that some test may need."""
    return filter(None, map(fault, PROGRAMS))


def pytest_configure(config: "pytest.Config") -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "needs(*programs): the programs of the system that the test runs")


def pytest_runtest_setup(item: "pytest.Item") -> None:
    """Skip a test whose program cannot be used; fail it where leaving anything out is a failure."""
    import pytest  # noqa: PLC0415 - as a program this file runs on a bare interpreter

    for marker in item.iter_markers("needs"):
        for why in filter(None, map(fault, marker.args)):
            if os.environ.get("CI") == "true":
                pytest.fail(f"{why}; script/test --install installs it", pytrace=False)
            pytest.skip(why)


def main() -> None:
    """Print what is missing: with `--packages` the packages to install, a line each, otherwise the faults."""
    if sys.argv[1:] == ["--packages"]:
        lines = sorted({package for program, package in PROGRAMS.items() if _where(program) is None})
    else:
        lines = list(left_out())
    print("\n".join(lines))  # noqa: T201 - its answer to script/test


if __name__ == "__main__":
    main()
