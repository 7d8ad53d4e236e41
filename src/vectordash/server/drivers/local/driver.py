"""The driver `local`: starts, lists and ends the instances on this computer.

What it knows is read anew from the folder and from /proc each time; in memory are only the pidfds by which
it hears that an instance has ended. A call works on one instance at a time, in a task that a cancelled
caller leaves behind to finish, so the next call on the same instance finds no work half done. Made once by
the composition root, before its loop runs: to try out the sandbox blocks for 50 ms.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from vectordash.server.drivers.base import (
    Access,
    DriverError,
    SeenInstance,
    SeenMachine,
    Spec,
    StartFailed,
    Unreachable,
)
from vectordash.server.drivers.local import computer, gpus, processes
from vectordash.server.drivers.local.folder import Folder, Place
from vectordash.server.drivers.local.gpus import Card
from vectordash.server.drivers.local.launch import Launch, launch
from vectordash.server.drivers.local.orders import Word, word
from vectordash.server.drivers.local.sandbox import USER, NoSandbox, Sandbox, probe
from vectordash.server.drivers.login import login, warm
from vectordash.server.vault import Vault

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 16
_PATIENCE = 10.0
"""Seconds in which a killed instance must let go of its lock."""


class LocalDriver:
    """Instances as processes of this computer; `sandbox` says whether and how they are shut in.

    `simulate` offers made-up cards even where there are real ones. `vault` seals what an instance is made
    from, in its folder; without one that is not kept, and not recalled.
    """

    kind = "local"
    user = USER
    start_deadline = 15.0

    def __init__(
        self,
        folder: Path,
        *,
        simulate: bool = False,
        sandbox: Sandbox | NoSandbox | None = None,
        vault: Vault | None = None,
    ) -> None:
        self.sandbox = sandbox or probe()
        self._folder = Folder(folder, vault)
        self._identity = self._folder.identity()
        self._simulate = simulate
        self._cards: dict[str, Card] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="local-driver")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: dict[str, int] = {}
        self._news = asyncio.Event()
        self._asking: asyncio.Future[SeenMachine] | None = None

    async def identity(self) -> str:
        """Tell which cluster this is: what stands in the folder."""
        return self._identity

    async def machines(self) -> Sequence[SeenMachine]:
        """Describe this computer. Its cards are asked one look at a time: a driver out of order may hang."""
        if self._asking is not None and not self._asking.done():
            raise Unreachable("NVML has not answered since the last look")
        self._asking = asyncio.ensure_future(self._in_thread(self._describe))
        return [await asyncio.shield(self._asking)]

    async def instances(self) -> Sequence[SeenInstance]:
        """List the folders of instances, and begin to watch those that an earlier server has started."""
        seen, adopted = await self._in_thread(self._look_at_all, frozenset(self._watched))
        for name, pidfd in adopted.items():
            self._watch(name, pidfd)
        return seen

    async def instance(self, name: str) -> SeenInstance | None:
        """Look at one: its folder, and without one also for processes that may be left.

        While it is being started or removed this waits: a start whose caller has left may be about to make
        what is not there yet, so “nothing” would be no proof.
        """
        place = self._folder.place(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            return await self._in_thread(self._look_at, place)

    async def recall(self, name: str) -> Spec | None:
        """Read what stands in its folder. While it is being started or removed this waits."""
        place = self._folder.place(name)
        async with self._locks.setdefault(name, asyncio.Lock()):
            return await self._in_thread(place.recall)

    async def ensure(self, spec: Spec) -> None:
        """Start it, unless it runs."""
        await self._alone(spec.name, lambda: self._start(spec))

    async def login(self, access: Access) -> None:
        """Log in as the renter."""
        await login(access, self._threads)

    async def remove(self, name: str) -> None:
        """End its processes, then delete its folder."""
        place = self._folder.place(name)
        # First without waiting for our turn, for it may be the turn of a start that hangs.
        await self._in_thread(processes.kill, self._mark(name))
        await self._alone(name, lambda: self._end(place))

    async def changed(self) -> None:
        """Return when an instance has ended that we know of."""
        await self._news.wait()
        self._news.clear()

    async def close(self) -> None:
        """Let go of everything; instances go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._watched):
            self._unwatch(name)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # What runs on the loop.

    async def _alone(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do work on an instance when no other is under way, to its end even if the caller leaves."""

        async def wait_and_work() -> None:
            async with self._locks.setdefault(name, asyncio.Lock()):
                await work()

        task = asyncio.create_task(wait_and_work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _start(self, spec: Spec) -> None:
        launched = await self._in_thread(self._launch, spec)
        if launched is None:
            return
        self._watch(spec.name, launched.pidfd)
        # Meanwhile the threads have nothing to do, and the next call will be a login.
        self._threads.submit(warm)
        said = await self._hear(launched)
        if said.said != "ready":
            await self._in_thread(self._kill, launched.place)
            raise StartFailed(f"the instance did not start: {said.reason}")

    async def _hear(self, launched: Launch) -> Word:
        """Wait for the word of a new instance; if it ends without one, that is a failure."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(launched.answer, readable.set)
        try:
            async with asyncio.timeout(self.start_deadline):
                await readable.wait()
        except TimeoutError as error:
            raise StartFailed(
                f"the instance said nothing for {self.start_deadline:.0f} s", transient=True
            ) from error
        finally:
            loop.remove_reader(launched.answer)
            # A word is shorter than what a pipe takes in one piece.
            answer = os.read(launched.answer, 65536) if readable.is_set() else b""
            os.close(launched.answer)
        if answer:
            return word(answer)
        # Its last words tell of paths of this computer: they are for the operator.
        last_words = await self._in_thread(launched.place.last_words)
        log.warning("%s ended before it served: %s", launched.place.name, last_words)
        return Word("failed", "its program ended before it served; the server's log says why")

    async def _end(self, place: Place) -> None:
        await self._in_thread(self._wipe, place)
        self._unwatch(place.name)

    def _watch(self, name: str, pidfd: int) -> None:
        """Hear of the end of a process, and reap it if it is our child."""
        self._unwatch(name)
        self._watched[name] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, name)

    def _ended(self, name: str) -> None:
        self._unwatch(name)
        self._news.set()

    def _unwatch(self, name: str) -> None:
        pidfd = self._watched.pop(name, None)
        if pidfd is None:
            return
        asyncio.get_running_loop().remove_reader(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        os.close(pidfd)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks. What the system refuses is a fault of this computer, told as one."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))
        except OSError as error:
            raise DriverError(f"this computer refuses: {error}") from error

    # What runs in a thread.

    def _mark(self, name: str) -> str:
        return processes.mark(name, self._identity)

    def _describe(self) -> SeenMachine:
        return computer.describe(self._folder.path, tuple(card.seen for card in self._inventory().values()))

    def _inventory(self) -> dict[str, Card]:
        """List the cards. Where real ones were seen, made-up ones never take their place."""
        had_real = any(not card.seen.simulated for card in self._cards.values())
        cards = () if self._simulate else gpus.real()
        if not cards and not had_real:
            cards = gpus.simulated(self._identity)
        if cards:
            self._cards = {card.seen.uuid: card for card in cards}
        return {card.seen.uuid: card for card in cards}

    def _look_at(self, place: Place) -> SeenInstance | None:
        """Look at one instance. One without a folder may still have processes."""
        seen = place.look()
        if seen is None and processes.alive(self._mark(place.name)):
            return SeenInstance(place.name, "running")
        return seen

    def _look_at_all(self, watched: frozenset[str]) -> tuple[list[SeenInstance], dict[str, int]]:
        """Look at all that have a folder, and open pidfds of those that run and are not watched."""
        seen = [seen for place in self._folder.places() if (seen := place.look())]
        adopted = {}
        for name in (each.name for each in seen if each.state == "running" and each.name not in watched):
            if (pidfd := processes.adopt(self._mark(name))) is not None:
                adopted[name] = pidfd
        return seen, adopted

    def _launch(self, spec: Spec) -> Launch | None:
        place = self._folder.place(spec.name)
        cards = [self._card(uuid) for uuid in spec.gpus]
        return launch(spec, place, cards, self.sandbox, self._mark(spec.name))

    def _card(self, uuid: str) -> Card:
        card = self._cards.get(uuid) or self._inventory().get(uuid)
        if card is None:
            raise StartFailed(f"the machine has no GPU {uuid}")
        return card

    def _kill(self, place: Place) -> None:
        """End the instance for certain.

        Its lock may be held for moments more: by a process in the last steps of its end, or by one that a
        server, killed meanwhile, has only just started.
        """
        deadline = time.monotonic() + _PATIENCE
        processes.kill(self._mark(place.name))
        while place.running():
            if time.monotonic() > deadline:
                raise DriverError(f"{place.name} holds its lock, though none of its processes is found")
            time.sleep(0.002)
            processes.kill(self._mark(place.name))

    def _wipe(self, place: Place) -> None:
        self._kill(place)
        place.wipe()
