"""What a process that serves the API does besides: note when tokens were used, look after those who wait."""

import asyncio
import logging

from vectordash.server.api.services import Services
from vectordash.wire.errors import Unavailable

log = logging.getLogger(__name__)


async def keep_up(services: Services) -> None:
    """Do it every few seconds until cancelled, each apart: one that fails keeps no other from its turn."""
    while True:
        for chore in (services.accounts.keep_uses, services.instances.waiters.look):
            try:
                await chore()
            except Unavailable as error:
                log.warning("the store does not answer: %s", error)
            except Exception:  # those who wait would wait in vain
                log.exception("%s failed", chore.__qualname__)
        await asyncio.sleep(services.settings.poll)
