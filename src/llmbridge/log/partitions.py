"""Makes sure that all bridges on one Redis spread streams over the same number of partitions."""

import asyncio
import logging

from llmbridge.errors import RedisUnavailable
from llmbridge.log.commands import Commands
from llmbridge.log.keys import Keys

LONGEST_PAUSE_MS = 3_600_000

logger = logging.getLogger(__name__)


class PartitionMismatch(Exception):
    """The streams in Redis are spread over another number of partitions."""

    def __init__(self, stored: int, configured: int) -> None:
        super().__init__(
            f"LLMBRIDGE_PARTITIONS is {configured}, but the streams in this Redis are spread over {stored} partitions: "
            f"set it to {stored}, use another LLMBRIDGE_KEY_PREFIX, or empty this Redis"
        )


class PartitionRecord:
    """The record of how many partitions there are. `keep_ms` must be at least the longest retention."""

    def __init__(self, commands: Commands, keys: Keys, keep_ms: int) -> None:
        self._commands = commands
        self._keys = keys
        self._keep_ms = keep_ms

    async def agree(self) -> None:
        """Make the record, or check it, and renew its expiry. Raises PartitionMismatch or RedisUnavailable."""
        key, partitions = self._keys.partition_count, self._keys.partitions
        await self._commands.read("SET", key, partitions, "NX", "PX", self._keep_ms)
        stored = int(await self._commands.read("GET", key) or partitions)
        if stored != partitions:
            raise PartitionMismatch(stored, partitions)
        await self._commands.read("PEXPIRE", key, self._keep_ms)

    async def run(self) -> None:
        """Renew the record's expiry until cancelled."""
        while True:
            await asyncio.sleep(min(self._keep_ms / 4, LONGEST_PAUSE_MS) / 1000)
            try:
                await self.agree()
            except RedisUnavailable as error:
                logger.debug("the partition record was not renewed, the next round will: %s", error)
