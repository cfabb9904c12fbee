"""Watches Redis: tells the health service when it goes and comes, and the operator when it may drop open streams."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from llmbridge.errors import RedisUnavailable
from llmbridge.log.watching import RedisWatch

PAUSE_SECONDS = 1.0

logger = logging.getLogger(__name__)


class RedisMonitor:
    """Asks Redis for a sign of life. `run` must be running."""

    def __init__(self, watch: RedisWatch, tell: Callable[[bool], Awaitable[None]]) -> None:
        self._watch = watch
        self._tell = tell
        self._reachable: bool | None = None
        self._missing: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Ask every second, or as soon as a hanging question fails, until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(PAUSE_SECONDS)

    async def check(self) -> None:
        """Ask once, and tell when the answer is another than before."""
        try:
            failures = await self._watch.ping()
        except RedisUnavailable as error:
            reachable = False
            if self._reachable is not False:
                logger.error("%s", error)
        else:
            reachable = True
            self._tell_missing(failures)
            if self._reachable is not True:
                logger.info("Redis is reachable")
                await self._check_eviction()
        if reachable is not self._reachable:
            self._reachable = reachable
            await self._tell(reachable)

    def _tell_missing(self, failures: Mapping[str, RedisUnavailable]) -> None:
        """Tell the operator of a cluster's nodes that do not answer.

        Health does not turn: every bridge sees the same, and taking all of them out of service would keep the other
        nodes' streams from being served, too.
        """
        for address, failure in failures.items():
            if address not in self._missing:
                logger.error("node %s does not serve its part of the streams: %s", address, failure)
        if self._missing and not failures:
            logger.info("all nodes of Redis are reachable")
        self._missing = frozenset(failures)

    async def _check_eviction(self) -> None:
        for policy in await self._watch.eviction_policies() - {"noeviction"}:
            logger.warning(
                "Redis' maxmemory-policy is %s: when its memory is full it will drop open streams. "
                "Set maxmemory-policy to noeviction",
                policy,
            )
