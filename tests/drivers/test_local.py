"""The driver `local`: life and death of instances, and what a renter inside cannot do."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import asyncssh
import pytest
import pytest_asyncio
import uvloop

from renting import Keys
from vectordash.server.drivers.base import PortBusy, SeenInstance, Spec, StartFailed
from vectordash.server.drivers.local import processes
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.drivers.local.orders import MARK
from vectordash.server.drivers.local.sandbox import NoSandbox, Sandbox
from vectordash.server.vault import Vault

pytestmark = pytest.mark.needs("bwrap", "ssh", "sftp")

PLAIN = NoSandbox("the test wants none")

MakeSpec = Callable[..., Spec]


VAULT = Vault(bytes(32))


@pytest_asyncio.fixture(params=[None, PLAIN], ids=["sandboxed", "plain"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalDriver]:
    """A driver, with and without a sandbox, that leaves nothing behind."""
    async for made in running_driver(tmp_path, request.param):
        yield made


@pytest_asyncio.fixture
async def sandboxed(tmp_path: Path) -> AsyncIterator[LocalDriver]:
    """A driver with a sandbox."""
    async for made in running_driver(tmp_path, None):
        assert isinstance(made.sandbox, Sandbox), made.sandbox
        yield made


async def running_driver(tmp_path: Path, sandbox: NoSandbox | None) -> AsyncIterator[LocalDriver]:
    made = LocalDriver(tmp_path / "local", simulate=True, sandbox=sandbox, vault=VAULT)
    yield made
    for left in await made.instances():
        await made.remove(left.name)
    await made.close()


def family(driver: LocalDriver, name: str) -> list[int]:
    """List the processes of an instance."""
    return [process.pid for process in processes.family(driver._mark(name))]


def seen(spec: Spec, state: Literal["running", "stopped"]) -> SeenInstance:
    """Say what the driver should see of an instance."""
    return SeenInstance(spec.name, state, spec.gpus, spec.port)


async def eventually(condition: Callable[[], Any], within: float = 3.0) -> None:
    """Wait for something that happens by itself."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


async def ssh(config: Path, command: str, *options: str) -> tuple[int, str]:
    """Run a command by stock OpenSSH; the exit code and all that was printed."""
    process = await asyncio.create_subprocess_exec(
        "ssh",
        "-F",
        config,
        *options,
        "machine",
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


# Life cycle


@pytest.mark.asyncio
async def test_an_instance_runs_after_ensure(driver: LocalDriver, make_spec: MakeSpec, keys: Keys) -> None:
    spec = make_spec()

    await driver.ensure(spec)
    await driver.login(keys.access(spec))

    assert await driver.instances() == [seen(spec, "running")]
    assert await driver.instance(spec.name) == seen(spec, "running")


@pytest.mark.asyncio
async def test_ensuring_again_changes_nothing(driver: LocalDriver, make_spec: MakeSpec) -> None:
    spec = make_spec()
    await driver.ensure(spec)
    before = family(driver, spec.name)

    await asyncio.gather(driver.ensure(spec), driver.ensure(spec))

    assert family(driver, spec.name) == before


@pytest.mark.asyncio
async def test_a_removed_instance_leaves_nothing(driver: LocalDriver, make_spec: MakeSpec) -> None:
    spec = make_spec()
    await driver.ensure(spec)

    await driver.remove(spec.name)

    assert await driver.instance(spec.name) is None
    assert await driver.instances() == []
    assert family(driver, spec.name) == []
    assert children_of_ours() == []
    await driver.remove(spec.name)


@pytest.mark.asyncio
async def test_a_stopped_instance_starts_again_with_its_disk(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    spec = make_spec()
    await driver.ensure(spec)
    assert await ssh(ssh_config(spec), "echo precious > file") == (0, "")
    os.kill(family(driver, spec.name)[-1], signal.SIGKILL)

    await asyncio.wait_for(driver.changed(), 3)
    await eventually(lambda: not family(driver, spec.name))
    assert await driver.instance(spec.name) == seen(spec, "stopped")
    assert await driver.instances() == [seen(spec, "stopped")]
    await driver.ensure(spec)

    assert await ssh(ssh_config(spec), "cat file") == (0, "precious\n")


@pytest.mark.asyncio
async def test_an_unknown_instance_is_none(driver: LocalDriver) -> None:
    assert await driver.instance("vd-never") is None
    await driver.remove("vd-never")


@pytest.mark.asyncio
async def test_a_busy_port_is_told_apart(driver: LocalDriver, make_spec: MakeSpec, busy_port: int) -> None:
    with pytest.raises(PortBusy) as caught:
        await driver.ensure(make_spec(port=busy_port))

    assert caught.value.port == busy_port
    assert caught.value.transient


@pytest.mark.asyncio
async def test_an_instance_that_cannot_start_says_why(driver: LocalDriver, make_spec: MakeSpec) -> None:
    spec = dataclasses.replace(make_spec(), host_key="no key")

    with pytest.raises(StartFailed, match="Invalid"):
        await driver.ensure(spec)

    assert family(driver, spec.name) == []
    assert await driver.instance(spec.name) == seen(spec, "stopped")


@pytest.mark.asyncio
async def test_an_unknown_gpu_is_refused(driver: LocalDriver, make_spec: MakeSpec) -> None:
    with pytest.raises(StartFailed, match="GPU-none"):
        await driver.ensure(dataclasses.replace(make_spec(), gpus=("GPU-none",)))


@pytest.mark.asyncio
async def test_a_cancelled_start_ends_in_the_same_place(driver: LocalDriver, make_spec: MakeSpec) -> None:
    for delay in (0.0, 0.005, 0.02, 0.1):
        spec = make_spec()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(driver.ensure(spec), delay)

        await driver.remove(spec.name)

        assert await driver.instance(spec.name) is None
        assert family(driver, spec.name) == []


@pytest.mark.asyncio
async def test_many_start_at_once(sandboxed: LocalDriver, make_spec: MakeSpec, keys: Keys) -> None:
    specs = [make_spec(f"vd-{number}") for number in range(6)]

    await asyncio.gather(*(sandboxed.ensure(spec) for spec in specs))
    await asyncio.gather(*(sandboxed.login(keys.access(spec)) for spec in specs))

    assert {each.state for each in await sandboxed.instances()} == {"running"}
    await asyncio.gather(*(sandboxed.remove(spec.name) for spec in specs))
    assert await sandboxed.instances() == []
    assert children_of_ours() == []


def test_the_driver_works_under_uvloop(tmp_path: Path, make_spec: MakeSpec, keys: Keys) -> None:
    async def live() -> None:
        driver = LocalDriver(tmp_path / "local", simulate=True)
        spec = make_spec()
        await driver.ensure(spec)
        await driver.login(keys.access(spec))
        os.kill(family(driver, spec.name)[0], signal.SIGKILL)
        await asyncio.wait_for(driver.changed(), 3)
        await driver.remove(spec.name)
        assert await driver.instance(spec.name) is None
        await driver.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())
    assert children_of_ours() == []


@pytest.mark.asyncio
async def test_a_disk_that_its_renter_made_hard_to_delete_is_deleted(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    spec = make_spec()
    await driver.ensure(spec)
    deep = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')"
    locked = "mkdir locked && touch locked/f && chmod 0 locked"
    made = await ssh(ssh_config(spec), f'{sys.executable} -c "{deep}"; {locked}; ln -s {outside} link')
    assert made == (0, "")

    await driver.remove(spec.name)

    assert await driver.instance(spec.name) is None
    assert (outside / "file").exists()


# The server dies

SERVER = """
import asyncio, pathlib, pickle, sys
from vectordash.server.drivers.local.driver import LocalDriver
from vectordash.server.drivers.local.sandbox import NoSandbox

async def main():
    folder, spec, sandbox = pickle.load(sys.stdin.buffer)
    await LocalDriver(folder, simulate=True, sandbox=sandbox).ensure(spec)
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextlib.contextmanager
def server(driver: LocalDriver, spec: Spec) -> Any:
    """Run a server of its own that starts an instance, and kill it at the end."""
    import pickle  # noqa: PLC0415 - from ourselves to ourselves

    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        pickle.dump((driver._folder.path, spec, driver.sandbox), process.stdin)
        process.stdin.close()
        yield process
        process.kill()


@pytest.mark.asyncio
async def test_an_instance_survives_its_server(driver: LocalDriver, make_spec: MakeSpec, keys: Keys) -> None:
    spec = make_spec()
    with server(driver, spec) as process:
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"

    await driver.login(keys.access(spec))
    assert await driver.instances() == [seen(spec, "running")]
    os.kill(family(driver, spec.name)[-1], signal.SIGKILL)
    await asyncio.wait_for(driver.changed(), 3)
    await driver.remove(spec.name)

    assert await driver.instance(spec.name) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03, 0.1, 0.2])
async def test_a_server_killed_during_a_start_leaves_what_remove_clears(
    driver: LocalDriver, make_spec: MakeSpec, delay: float
) -> None:
    spec = make_spec()
    folder = driver._folder.path / spec.name
    with server(driver, spec):
        await eventually(folder.exists)
        await asyncio.sleep(delay)

    await driver.remove(spec.name)

    assert await driver.instance(spec.name) is None
    await asyncio.sleep(0.05)
    assert family(driver, spec.name) == []


@pytest.mark.asyncio
async def test_a_server_killed_during_a_start_leaves_what_ensure_completes(
    driver: LocalDriver, make_spec: MakeSpec, keys: Keys
) -> None:
    spec = make_spec()
    folder = driver._folder.path / spec.name
    with server(driver, spec):
        await eventually(folder.exists)

    await driver.ensure(spec)
    async with asyncio.timeout(5):
        await driver.login(keys.access(spec))

    assert await driver.instance(spec.name) == seen(spec, "running")


@pytest.mark.asyncio
async def test_half_made_folders_are_swept(tmp_path: Path) -> None:
    (tmp_path / "local" / ".new-vd-one-abcd").mkdir(parents=True)

    driver = LocalDriver(tmp_path / "local", sandbox=PLAIN)

    assert [entry.name for entry in (tmp_path / "local").iterdir()] == ["id"]
    assert LocalDriver(tmp_path / "local", sandbox=PLAIN)._identity == await driver.identity()


@pytest.mark.asyncio
async def test_without_its_folder_an_instance_ends_itself(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    spec = make_spec()
    await driver.ensure(spec)
    left = "nohup sleep 61 >/dev/null 2>&1 </dev/null & env -i setsid sleep 62 >/dev/null 2>&1 </dev/null &"
    assert await ssh(ssh_config(spec), left) == (0, "")
    before = family(driver, spec.name)
    assert len(before) >= 3

    subprocess.run(["rm", "-rf", driver._folder.path / spec.name], check=True)

    await eventually(lambda: not family(driver, spec.name))
    await eventually(lambda: not any(alive(pid) for pid in before))
    assert await driver.instance(spec.name) is None


@pytest.mark.asyncio
async def test_what_a_renter_detached_ends_with_the_instance(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    spec = make_spec()
    await driver.ensure(spec)
    free = ">/dev/null 2>&1 </dev/null &"
    left = f"env -i setsid sh -c 'sleep 63 & sleep 64' {free} nohup sleep 65 {free}"
    assert await ssh(ssh_config(spec), left) == (0, "")
    await eventually(lambda: len(family(driver, spec.name)) >= 4)
    before = family(driver, spec.name)

    await driver.remove(spec.name)

    assert not any(alive(pid) for pid in before)


# Who gets in


@pytest.mark.asyncio
async def test_a_wrong_key_is_refused(
    driver: LocalDriver, make_spec: MakeSpec, keys: Keys, other_keys: Keys
) -> None:
    spec = make_spec()
    await driver.ensure(spec)

    with pytest.raises(StartFailed, match="refuses"):
        await driver.login(dataclasses.replace(keys.access(spec), pem=other_keys.pem))


@pytest.mark.asyncio
@pytest.mark.parametrize("user", ["root", "nobody", "ubuntu "])
async def test_a_wrong_user_is_refused(
    driver: LocalDriver, make_spec: MakeSpec, keys: Keys, user: str
) -> None:
    spec = make_spec()
    await driver.ensure(spec)

    with pytest.raises(StartFailed, match="refuses"):
        await driver.login(keys.access(spec, user))


@pytest.mark.asyncio
async def test_a_wrong_host_key_is_noticed(
    driver: LocalDriver, make_spec: MakeSpec, keys: Keys, other_keys: Keys
) -> None:
    spec = make_spec()
    await driver.ensure(spec)

    with pytest.raises(StartFailed, match="host key"):
        await driver.login(dataclasses.replace(keys.access(spec), host_key=other_keys.host_public))


@pytest.mark.asyncio
async def test_a_login_waits_for_the_server(sandboxed: LocalDriver, make_spec: MakeSpec, keys: Keys) -> None:
    spec = make_spec()

    async with asyncio.timeout(10):
        await asyncio.gather(sandboxed.login(keys.access(spec)), sandboxed.ensure(spec))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sandboxed.login(keys.access(make_spec("vd-two"))), 0.2)


@pytest.mark.asyncio
async def test_nothing_secret_is_visible_from_outside(
    driver: LocalDriver, make_spec: MakeSpec, keys: Keys
) -> None:
    """On the disk it stands sealed."""
    spec = make_spec()
    await driver.ensure(spec)
    secrets = [keys.host_key.splitlines()[2].encode(), keys.public.split()[1][40:].encode()]

    shown = b""
    for pid in family(driver, spec.name):
        for file in ("cmdline", "environ"):
            with contextlib.suppress(PermissionError):  # what we may not read is not shown
                shown += Path(f"/proc/{pid}/{file}").read_bytes()
    files = [path for path in driver._folder.path.rglob("*") if path.is_file()]
    stored = b"".join(path.read_bytes() for path in files)

    assert not any(secret in shown + stored for secret in secrets)
    given = driver._folder.path / spec.name / "given"
    assert (given.stat().st_mode & 0o777) == 0o600
    assert (driver._folder.path.stat().st_mode & 0o777) == 0o700


@pytest.mark.asyncio
@pytest.mark.parametrize("written", ['{"gpus": ["GPU-1"], "port": 4711}', "{", None], ids=str)
async def test_what_an_earlier_version_did_not_write_is_not_recalled(
    driver: LocalDriver, make_spec: MakeSpec, written: str | None
) -> None:
    """What it did write is seen as before, and the next start writes the rest."""
    spec = make_spec()
    place = driver._folder.place(spec.name)
    place.make(driver.sandbox.owner if isinstance(driver.sandbox, Sandbox) else None)
    if written is not None:
        (place.path / "given").write_text(written)
    known = (("GPU-1",), 4711) if written and "port" in written else ((), 0)

    assert await driver.recall(spec.name) is None
    assert await driver.instance(spec.name) == SeenInstance(spec.name, "stopped", *known)

    await driver.ensure(spec)
    assert await driver.recall(spec.name) == spec


@pytest.mark.asyncio
async def test_a_half_written_record_that_anybody_may_read_is_not_written_on(
    driver: LocalDriver, make_spec: MakeSpec
) -> None:
    """A server was killed while it wrote, with the rights that an earlier version gave."""
    spec = make_spec()
    place = driver._folder.place(spec.name)
    place.make(driver.sandbox.owner if isinstance(driver.sandbox, Sandbox) else None)
    (place.path / "given.new").touch(mode=0o644)

    await driver.ensure(spec)

    assert await driver.recall(spec.name) == spec
    assert ((place.path / "given").stat().st_mode & 0o777) == 0o600


# The sandbox


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (
            "id -un; id -Gn; hostname; pwd; echo $HOME $USER $SHELL",
            "ubuntu\nubuntu\nbrave-otter\n/home/ubuntu\n/home/ubuntu ubuntu /bin/bash\n",
        ),
        ("grep -hE 'Cap(Eff|Prm|Bnd|Amb)' /proc/self/status | cut -f2 | sort -u", "0000000000000000\n"),
        ("grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"),
        ("ls -d /proc/[0-9]* | wc -l | xargs test 6 -gt && echo few", "few\n"),
        ("touch /usr/x /etc/x /x /run/x 2>/dev/null; ls -d /usr/x /etc/x /x 2>/dev/null", ""),
        ("ls /etc/shadow /etc/ssh /etc/sudoers /etc/ssl/private 2>/dev/null", ""),
        ("kill -9 1; kill -15 1; kill -2 1; sleep 0.1; echo alive", "alive\n"),
        ("touch /tmp/x /dev/shm/x /var/tmp/x && echo own", "own\n"),
        ("python3 -c 'import socket; print(socket.gethostbyname(\"brave-otter\"))'", "127.0.1.1\n"),
    ],
    ids=[
        "who",
        "capabilities",
        "privileges",
        "processes",
        "system",
        "secrets",
        "init",
        "tmp",
        "hosts",
    ],
)
async def test_inside_a_sandbox(
    sandboxed: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path], command: str, answer: str
) -> None:
    spec = make_spec()
    await sandboxed.ensure(spec)

    _, said = await ssh(ssh_config(spec), command)

    assert said == answer


@pytest.mark.asyncio
async def test_a_sandbox_shows_nothing_of_the_others(
    sandboxed: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    one, two = make_spec("vd-one"), make_spec("vd-two")
    await sandboxed.ensure(one)
    await sandboxed.ensure(two)
    outside = " ".join(map(str, [os.getpid(), *family(sandboxed, two.name), family(sandboxed, one.name)[0]]))
    folder = sandboxed._folder.path

    found = await ssh(ssh_config(one), f"ls {folder} {folder.parent}; ls -d /proc/1/root/{folder}; echo end")
    killed = await ssh(
        ssh_config(one), f"for p in {outside}; do kill -9 $p 2>/dev/null && echo $p; done; true"
    )

    assert "vd-" not in found[1].replace(str(folder), "")
    assert "end\n" in found[1]
    assert killed == (0, "")
    assert {each.state for each in await sandboxed.instances()} == {"running"}


@pytest.mark.asyncio
async def test_sftp_is_inside_the_sandbox_too(
    sandboxed: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path], tmp_path: Path
) -> None:
    spec = make_spec()
    await sandboxed.ensure(spec)

    for path in ("/etc/shadow", "/proc/1/root/etc/shadow", sandboxed._folder.path / "id"):
        got = subprocess.run(
            ["sftp", "-F", ssh_config(spec), f"machine:{path}", tmp_path / "got"],
            capture_output=True,
            check=False,
        )

        assert got.returncode != 0
        assert not (tmp_path / "got").exists()


@pytest.mark.asyncio
async def test_a_renter_cannot_make_python_import_his_files(
    sandboxed: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    spec = make_spec()
    await sandboxed.ensure(spec)
    names = "asyncio.py socket.py sitecustomize.py usercustomize.py"
    trap = f"echo 'import os; os.mkdir(\"/home/ubuntu/trapped\")' | tee {names}"
    site = 'd=.local/lib/python3.11/site-packages; mkdir -p $d; cp *.py $d; echo "import socket" > $d/x.pth'
    await ssh(ssh_config(spec), f"{trap}; {site}")
    os.kill(family(sandboxed, spec.name)[-1], signal.SIGKILL)
    await eventually(lambda: not family(sandboxed, spec.name))

    await sandboxed.ensure(spec)

    assert await ssh(ssh_config(spec), "ls -d trapped 2>/dev/null") == (2, "")


# The computer


@pytest.mark.asyncio
async def test_the_computer_is_the_one_machine(driver: LocalDriver) -> None:
    (machine,) = await driver.machines()

    assert machine.online
    assert machine.address == "127.0.0.1"
    assert machine.cpu
    assert min(machine.cores, machine.ram, machine.disk) > 0


@pytest.mark.asyncio
async def test_simulated_cards_are_marked_and_stay_the_same(tmp_path: Path) -> None:
    first = (await LocalDriver(tmp_path / "a", simulate=True, sandbox=PLAIN).machines())[0].gpus
    again = (await LocalDriver(tmp_path / "a", simulate=True, sandbox=PLAIN).machines())[0].gpus
    other = (await LocalDriver(tmp_path / "b", simulate=True, sandbox=PLAIN).machines())[0].gpus

    assert [(gpu.model, gpu.vram) for gpu in first] == [
        ("NVIDIA GeForce GTX 1080 Ti", 11),
        ("NVIDIA GeForce GTX 1080 Ti", 11),
        ("NVIDIA TITAN V", 12),
        ("Tesla V100-SXM2-16GB", 16),
    ]
    assert all(gpu.simulated for gpu in first)
    assert first == again
    assert not {gpu.uuid for gpu in first} & {gpu.uuid for gpu in other}


@pytest.mark.asyncio
async def test_an_instance_sees_the_cards_that_it_was_given(
    sandboxed: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    uuid = (await sandboxed.machines())[0].gpus[2].uuid
    spec = dataclasses.replace(make_spec(), gpus=(uuid,))
    await sandboxed.ensure(spec)

    assert await ssh(ssh_config(spec), "echo $CUDA_VISIBLE_DEVICES") == (0, f"{uuid}\n")


def alive(pid: int) -> bool:
    return processes._look(pid) is not None


def children_of_ours() -> list[str]:
    """List our children, zombies too."""
    return [
        child
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@pytest.mark.asyncio
async def test_a_renter_cannot_look_into_the_first_process(
    sandboxed: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    """It is its renter's own user, and yet: no memory, no environment, no descriptors."""
    spec = make_spec()
    await sandboxed.ensure(spec)
    looks = "cat /proc/1/environ /proc/1/mem; ls /proc/1/fd/; true"

    _, shown = await ssh(ssh_config(spec), f"({looks}) 2>/dev/null")

    assert shown == ""


@pytest.mark.asyncio
async def test_a_renter_who_locks_his_home_is_let_in_again(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    spec = make_spec()
    await driver.ensure(spec)
    await ssh(ssh_config(spec), "chmod 000 .")
    for process in processes.family(driver._mark(spec.name)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    while (seen := await driver.instance(spec.name)) is None or seen.state == "running":
        await asyncio.sleep(0.01)

    await driver.ensure(spec)

    assert (await ssh(ssh_config(spec), "echo here"))[1] == "here\n"


@pytest.mark.asyncio
async def test_a_mark_inside_a_sandbox_is_no_mark(
    sandboxed: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    """Or a renter could keep another's instance from ever being gone."""
    mine, other = make_spec("vd-mine"), make_spec("vd-other")
    await sandboxed.ensure(mine)
    await sandboxed.ensure(other)
    forged = f"{MARK}={sandboxed._mark(other.name)}"
    await ssh(ssh_config(mine), f"{forged} setsid sleep 61 >/dev/null 2>&1 </dev/null &")

    await sandboxed.remove(other.name)

    assert await sandboxed.instance(other.name) is None
    assert (await ssh(ssh_config(mine), "pgrep -x sleep | wc -l"))[1] == "1\n"


@pytest.mark.asyncio
async def test_a_pipe_is_refused_over_sftp_and_stops_nothing(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    spec = make_spec()
    await driver.ensure(spec)
    await ssh(ssh_config(spec), "mkfifo pipe")
    key = asyncssh.import_private_key(ssh_config(spec).with_name("pem").read_text())

    async with (
        asyncssh.connect(
            spec.address, spec.port, username="ubuntu", client_keys=[key], known_hosts=None, config=None
        ) as connection,
        connection.start_sftp_client() as sftp,
    ):
        with pytest.raises(asyncssh.SFTPError, match="pipe"):
            await sftp.open("pipe", "rb")

    assert (await ssh(ssh_config(spec), "echo alive"))[1] == "alive\n"


@pytest.mark.asyncio
async def test_a_server_that_ignores_signals_does_not_pass_that_on(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    """One under nohup ignores SIGHUP, by which renters' terminals hang up."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        spec = make_spec()
        await driver.ensure(spec)
    finally:
        signal.signal(signal.SIGHUP, before)

    _, ignored = await ssh(ssh_config(spec), "grep SigIgn /proc/self/status")

    # The C library keeps the first real-time signals to itself.
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0


@pytest.mark.asyncio
async def test_the_hostname_is_the_instance_s_own(
    driver: LocalDriver, make_spec: MakeSpec, ssh_config: Callable[[Spec], Path]
) -> None:
    """Without a sandbox too, as the README's last line shows; the computer keeps its own."""
    spec = make_spec()
    before = socket.gethostname()
    await driver.ensure(spec)

    assert await ssh(ssh_config(spec), "hostname") == (0, f"{spec.hostname}\n")
    assert socket.gethostname() == before != spec.hostname
