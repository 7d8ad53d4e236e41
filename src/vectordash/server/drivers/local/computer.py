"""What kind of computer this is: processor, memory, disk. Blocking; the driver calls it in a thread."""

import os
import shutil
import socket
from pathlib import Path

from vectordash.server.drivers.base import SeenGpu, SeenMachine


def describe(folder: Path, gpus: tuple[SeenGpu, ...]) -> SeenMachine:
    """Describe this computer as the one machine of the cluster; `folder` says which disk counts."""
    return SeenMachine(
        name=socket.gethostname(),
        online=True,
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        ram=max(1, round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)),
        disk=shutil.disk_usage(folder).free // 2**30,
        address="127.0.0.1",
        gpus=gpus,
    )


def _cpu() -> str:
    """Name the processor; ARM kernels give no model name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return os.uname().machine
