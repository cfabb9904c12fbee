"""Carries commands to Redis and replies back over one connection, and says plainly what a failure means.

Half-duplex: one batch of commands out, all their replies in. It never sends anything twice.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from llmbridge.errors import RedisUnavailable
from llmbridge.log.connections import Connector, pause_seconds

Command = tuple[str | bytes | int, ...]
Reply = Any
"""What Redis answered, as redis-py decodes it; an error reply is a ResponseError in the list, not raised."""


class ConnectionBroken(Exception):
    """The connection failed after commands were sent: each may have been carried out or not."""


class Exchange:
    """Owns one connection to Redis. Used by one task at a time (its batcher's)."""

    def __init__(self, connector: Connector, purpose: str, timeout_seconds: float) -> None:
        self._connection = connector.make(purpose)
        self._timeout_seconds = timeout_seconds
        self._failures = 0
        self._closed_until = 0.0

    async def send(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands and return their replies.

        Raises RedisUnavailable when nothing was sent (at once while a pause after a failed attempt lasts, else within
        the connect timeout), ConnectionBroken when the outcome is unknown (within the timeout).
        """
        # redis-py's own packing, in Python, takes ten times as long.
        packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]
        if not await self._is_open():
            await self._connect()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._connection.send_packed_command(packed, check_health=False)
                return [await self._reply() for _ in commands]
        except BusyLoadingError as error:
            await self._connection.disconnect(nowait=True)
            raise RedisUnavailable(f"it is loading its data: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            await self._connection.disconnect(nowait=True)
            raise ConnectionBroken(f"{type(error).__name__}: {error}") from error
        except BaseException:
            # Cancelled between command and reply: what comes next on this connection answers an earlier question.
            await self._connection.disconnect(nowait=True)
            raise

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.disconnect()

    async def _is_open(self) -> bool:
        if not self._connection.is_connected:
            return False
        try:
            ended = await self._connection.can_read()
        except RedisError:
            ended = True
        if ended:
            # Nothing was asked, so what there is to read is the end: Redis closed the idle connection. Noticed now,
            # before anything is sent, nothing is in doubt.
            await self._connection.disconnect(nowait=True)
        return not ended

    async def _connect(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._closed_until:
            raise RedisUnavailable("it could not be reached a moment ago")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            self._failures += 1
            self._closed_until = asyncio.get_running_loop().time() + pause_seconds(self._failures)
            raise RedisUnavailable(f"{type(error).__name__}: {error}") from error
        self._failures = 0

    async def _reply(self) -> Reply:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error
