"""What a renter can do with instances. Each method is one command or one question; the API calls these.

A command opens one transaction, writes what is desired and wakes the reconciler; it never waits for a
machine.
"""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
from sqlalchemy import Connection

from vectordash.server import audit
from vectordash.server.accounts.service import Accounts
from vectordash.server.accounts.store import Caller
from vectordash.server.clock import Clock, as_written
from vectordash.server.db.session import Store
from vectordash.server.instances import store as rows
from vectordash.server.instances.charge import Use, charge
from vectordash.server.instances.keys import KeyPair, make_pair, seal_pair
from vectordash.server.instances.lifecycle import status
from vectordash.server.instances.rent import Renting, StockEmpty, Wish, rent
from vectordash.server.instances.store import Row
from vectordash.server.instances.waiting import Waiters
from vectordash.server.settings import Settings
from vectordash.server.vault import Vault
from vectordash.wire.errors import Gone, InvalidField
from vectordash.wire.instance import Connection as Access
from vectordash.wire.instance import Event, Instance, NewInstance, PhysicalGpu

USER = "ubuntu"
"""Who a renter logs in as, on every kind of cluster."""


@dataclass(slots=True)
class Instances:
    """The instances of this cloud."""

    store: Store
    clock: Clock
    settings: Settings
    vault: Vault
    accounts: Accounts
    waiters: Waiters
    wake: Callable[[], None]
    """Tells the reconcilers that something is due."""
    tell: Callable[[str], None]
    """Tells those who wait that something has become of an instance."""
    _crypto: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "crypto"))

    async def rent(
        self,
        caller: Caller,
        new: NewInstance,
        *,
        idempotency_key: str | None = None,
        max_price: Decimal | None = None,
    ) -> tuple[Instance, bool]:
        """Rent a GPU; gives the instance, and whether this was a replay of the same `Idempotency-Key`."""
        wish = Wish(
            name=new.name,
            gpu=new.gpu,
            image=new.image,
            date=None if isinstance(new.date, msgspec.UnsetType) else _date(new.date),
            body_hash=hashlib.sha256(msgspec.json.encode(new)).hexdigest(),
            idempotency_key=idempotency_key,
            max_price=max_price,
        )
        try:
            row, replayed = await self.store.write(self._rent, caller, wish, None)
        except StockEmpty:
            pair = await asyncio.get_running_loop().run_in_executor(self._crypto, make_pair)
            row, replayed = await self.store.write(self._rent, caller, wish, pair)
        self.wake()
        return self._shown(row), replayed

    def _rent(
        self, connection: Connection, caller: Caller, wish: Wish, spare: KeyPair | None
    ) -> tuple[Row, bool]:
        how = Renting(self.settings, self.accounts, self.vault)
        sealed = None if spare is None else seal_pair(self.vault, spare)
        key, replayed = rent(connection, how, caller, wish, self.clock(), sealed)
        return rows.find(connection, caller.user_id, key), replayed

    async def list_live(self, caller: Caller) -> list[Instance]:
        """List the caller's pending and active instances, newest first."""
        return [self._shown(row) for row in await self.store.read(rows.live, caller.user_id)]

    async def get(self, caller: Caller, key_or_name: str) -> Instance:
        """Show one instance, ended or not."""
        return self._shown(await self.store.read(rows.find, caller.user_id, key_or_name))

    async def wait(self, caller: Caller, key_or_name: str, seconds: float) -> Instance:
        """Show one instance as soon as it is no longer pending, or when the seconds are over."""
        row = await self.store.read(rows.find, caller.user_id, key_or_name)
        end = asyncio.get_running_loop().time() + seconds
        with self.waiters.waiting(row.key) as news:
            # Read again, now that news is heard; and after each piece of it, for a try may have failed.
            row = await self.store.read(rows.find, caller.user_id, row.key)
            while status(row.active_at, row.ended_at) == "pending":
                if not await news(end - asyncio.get_running_loop().time()):
                    break
                row = await self.store.read(rows.find, caller.user_id, row.key)
        return self._shown(row)

    async def rename(self, caller: Caller, key_or_name: str, name: str) -> Instance:
        """Give a live instance another name. Its hostname stays what it was."""
        return self._shown(await self.store.write(self._rename, caller, key_or_name, name))

    def _rename(self, connection: Connection, caller: Caller, key_or_name: str, name: str) -> Row:
        row = rows.find(connection, caller.user_id, key_or_name)
        if not rows.rename(connection, row.key, name):
            raise _gone(rows.find(connection, caller.user_id, row.key))
        now = self.clock()
        rows.tell(connection, row.key, now, "renamed", f"Renamed from “{row.name}” to “{name}”.")
        audit.record(connection, now, caller.email, "rename", f"{row.key} “{row.name}” to “{name}”")
        return rows.find(connection, caller.user_id, row.key)

    async def delete(self, caller: Caller, key_or_name: str) -> None:
        """End an instance: the billing clock stops now, whatever its cluster does next."""
        key = await self.store.write(self._delete, caller, key_or_name)
        self.tell(key)
        self.wake()

    def _delete(self, connection: Connection, caller: Caller, key_or_name: str) -> str:
        row = rows.find(connection, caller.user_id, key_or_name)
        now = self.clock()
        if not rows.end(connection, row.key, now, "deleted", now):
            raise _gone(rows.find(connection, caller.user_id, row.key))
        rows.tell(connection, row.key, now, "deleted", "Deleted by its renter; billing has ended.")
        audit.record(connection, now, caller.email, "delete", f"{row.key} “{row.name}”")
        return row.key

    async def connection(self, caller: Caller, key_or_name: str) -> tuple[str, Access]:
        """Give the instance's name and all that SSH needs. Raises `Gone` once it has ended."""
        row = await self.store.read(rows.find, caller.user_id, key_or_name)
        if row.ended_at is not None:
            raise _gone(row)
        where = row.address if row.port == 22 else f"[{row.address}]:{row.port}"
        return row.name, Access(
            ip=row.address,
            port=row.port,
            user=USER,
            pem=self._pem(row),
            ssh_host_key=row.host_public_key,
            known_hosts=f"{where} {row.host_public_key}\n",
            ssh_command=(
                f"ssh -i {row.name}.pem -p {row.port} -o UserKnownHostsFile={row.name}.known_hosts "
                f"-o StrictHostKeyChecking=yes {USER}@{row.address}"
            ),
        )

    async def events(self, caller: Caller, key_or_name: str) -> list[Event]:
        """Tell what happened to an instance, oldest first."""

        def question(connection: Connection) -> list[Event]:
            row = rows.find(connection, caller.user_id, key_or_name)
            return [
                Event(time.replace(microsecond=0), kind, attempt, message)
                for time, kind, attempt, message in rows.events_of(connection, row.key)
            ]

        return await self.store.read(question)

    def _pem(self, row: Row) -> str:
        return "" if row.pem is None else self.vault.open(row.pem, row.public_key)

    def _shown(self, row: Row) -> Instance:
        use = Use(row.price, row.active_at, row.ended_at, row.error, row.unseen_since, row.free_seconds)
        duration, so_far = charge(use, self.clock(), by_second=self.settings.billing == "second")
        return Instance(
            key=row.key,
            name=row.name,
            ip=row.address,
            port=row.port,
            user=USER,
            pem=self._pem(row),
            physical_gpus=[PhysicalGpu(row.gpu_id, row.gpu_type)],
            cpu=row.cpu,
            ram=row.ram,
            storage=row.storage,
            image=row.image,
            start_time=row.created_at.replace(microsecond=0),
            end_time=None if row.ended_at is None else row.ended_at.replace(microsecond=0),
            hourly_price=row.price.quantize(Decimal("0.01")),
            estimated_charge=so_far,
            duration=duration,
            guaranteed_availability=as_written(row.until),
            status=status(row.active_at, row.ended_at),
            error_occurred=row.error,
        )

    def close(self) -> None:
        """Finish what was begun."""
        self._crypto.shutdown()


def _date(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError as error:
        why = f"there is no {text}; write YYYY-MM-DD HH:MM:SS (UTC)"
        raise InvalidField({"date": why}) from error


def _gone(row: Row) -> Gone:
    return Gone(row.key, as_written(row.ended_at or row.created_at))
