"""The README's lines, pasted as they stand."""

import re
import subprocess
from pathlib import Path

import pytest

from server import Servers

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.needs("curl", "ssh")


def pasted() -> str:
    """Give the README's block of commands that rents, logs in and deletes."""
    block = re.search(
        r"^(    \. \.vectordash/demo\.env(?:.*\n)(?:    .*\n)+)", README.read_text(), re.MULTILINE
    )
    assert block is not None
    return "".join(line.removeprefix("    ") for line in block[1].splitlines(keepends=True))


def test_the_lines_of_the_readme_work_as_they_stand(servers: Servers) -> None:
    """Rent, wait, log in without a question, delete: no placeholder, no other tool."""
    servers.start()

    done = subprocess.run(
        ["bash", "-e", "-c", pasted()],
        cwd=servers.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert '"status":"active"' in done.stdout
    assert "\nfirst\n" in done.stdout.replace("}}first\n", "}}\nfirst\n")
    assert "204 No Content" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line[:3].strip() not in ("", "%", "0", "100")]
    assert sorted(path.name for path in servers.folder.glob("first*")) == [
        "first.known_hosts",
        "first.pem",
        "first.ssh",
    ]
