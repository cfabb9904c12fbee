"""Carries commands to Redis and replies back over one connection, and says plainly what a failure means.

Half-duplex: one batch of commands out, all their replies in. It never sends anything twice.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError

from llmbridge.errors import RedisUnavailable
from llmbridge.log.connections import LONGEST_PAUSE_SECONDS, Breaker, Connector, NotSent, write
from llmbridge.redis_url import Address

logger = logging.getLogger(__name__)

Command = tuple[str | bytes | int, ...]
Reply = Any
"""What Redis answered, as redis-py decodes it; an error reply is a ResponseError in the list, not raised."""


class ConnectionBroken(Exception):
    """The connection failed after commands were sent: each may have been carried out or not."""


class Exchange:
    """Owns one connection to Redis. Used by one task at a time (its batcher's).

    `troubled` is called whenever the connection fails or does not come about.
    """

    def __init__(
        self,
        connector: Connector,
        purpose: str,
        timeout_seconds: float,
        address: Address | None = None,
        troubled: Callable[[], None] = lambda: None,
    ) -> None:
        self.breaker = Breaker()
        self._connector = connector
        self._connection = connector.make(purpose, address)
        self._timeout_seconds = timeout_seconds
        self._troubled = troubled
        self._demoted = False
        self._connected_at = 0.0

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
                await self._write(packed)
                return [await self._reply() for _ in commands]
        except BusyLoadingError as error:
            await self._give_up()
            raise RedisUnavailable(f"it is loading its data: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            await self._give_up()
            raise ConnectionBroken(
                f"the connection failed before Redis answered, {type(error).__name__}: {error}"
            ) from error
        except BaseException:
            # Cancelled between command and reply: what comes next on this connection answers an earlier question.
            await self._connection.disconnect(nowait=True)
            raise
        finally:
            if self._demoted:
                await self.renew()

    async def renew(self) -> None:
        """Connect anew before the next batch: this server is no primary any more, another one may be.

        Not where it was connected to just now: meanwhile it can be read from.
        """
        self._demoted = False
        if asyncio.get_running_loop().time() - self._connected_at > LONGEST_PAUSE_SECONDS:
            await self._connection.disconnect(nowait=True)
        self._troubled()

    async def close(self) -> None:
        """Close the connection."""
        try:
            await self._connection.disconnect()
        except RedisError as error:
            # A server that hangs does not answer to the end of TLS either; nothing waits for this connection any more.
            logger.debug("a connection was not closed in time: %s", error)

    async def _write(self, packed: bytes) -> None:
        try:
            await write(self._connection, packed)
        except NotSent:
            # Reset while it was idle. Nothing is in doubt, so nobody need be told.
            await self._connection.disconnect(nowait=True)
            await self._connect()
            await write(self._connection, packed)

    async def _give_up(self) -> None:
        await self._connection.disconnect(nowait=True)
        self._troubled()

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
        self.breaker.begin()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._connector.open(self._connection)
        except (RedisError, OSError, TimeoutError) as error:
            self.breaker.failed()
            await self._give_up()
            raise RedisUnavailable(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.breaker.abandoned()
            await self._connection.disconnect(nowait=True)
            raise
        self.breaker.succeeded()
        self._connected_at = asyncio.get_running_loop().time()

    async def _reply(self) -> Reply:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            # A script's error begins with its place (6.2), so that the library does not know it.
            if isinstance(error, ReadOnlyError) or "READONLY " in str(error):
                self._demoted = True
            return error
