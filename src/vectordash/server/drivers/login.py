"""The proof that a renter can log in: an SSH login as theirs, host key and all.

Drivers share it, for the way in is the same wherever an instance runs. Nothing is kept between two logins.
asyncssh is imported at the first one, in a thread: it takes a quarter of a second, which the start of the
server should not wait for.
"""

import asyncio
import contextlib
import importlib
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from vectordash.server.drivers.base import Access, StartFailed

if TYPE_CHECKING:
    import asyncssh

_PAUSE = 0.02
"""Seconds between two tries. A try costs next to nothing, and a renter waits for the one that succeeds."""


async def login(access: Access, threads: Executor | None = None) -> None:
    """Log in and run `true`. Until the server is up, try again, for as long as the caller lets us.

    Raises `StartFailed` if the server is up and it, or its key, is not what it should be. Keys are parsed in
    one of `threads`.
    """
    client, host = await asyncio.get_running_loop().run_in_executor(threads, _keys, access)
    while True:
        with contextlib.suppress(ConnectionError, TimeoutError, OSError):
            if await _try(access, client, host):
                return
        await asyncio.sleep(_PAUSE)


def warm() -> None:
    """Import what a login needs; blocks."""
    importlib.import_module("asyncssh")


def _keys(access: Access) -> tuple["asyncssh.SSHKey", "asyncssh.SSHKey"]:
    import asyncssh  # noqa: PLC0415 - slow; see the module's docstring

    # The key is of our own making, so its primes need no proof, which would take 50 ms.
    client = asyncssh.import_private_key(access.pem, unsafe_skip_rsa_key_validation=True)
    return client, asyncssh.import_public_key(access.host_key)


async def _try(access: Access, client: "asyncssh.SSHKey", host: "asyncssh.SSHKey") -> bool:
    """Log in once; False if the server hung up, as one that is still starting does."""
    import asyncssh  # noqa: PLC0415 - imported by now

    try:
        async with asyncssh.connect(
            access.address,
            access.port,
            username=access.user,
            client_keys=[client],
            known_hosts=([host], [], []),
            config=None,
            agent_path=None,
            gss_host=None,
            x509_trusted_certs=None,
            password_auth=False,
            kbdint_auth=False,
        ) as connection:
            result = await connection.run("true")
    except asyncssh.PermissionDenied as error:
        raise StartFailed("the machine refuses the renter's key") from error
    except asyncssh.HostKeyNotVerifiable as error:
        raise StartFailed("another machine answers at this address: its host key differs") from error
    except asyncssh.Error:
        return False
    if result.exit_status != 0:
        raise StartFailed(f"the login works, but running a program in it fails ({result.exit_status})")
    return True
