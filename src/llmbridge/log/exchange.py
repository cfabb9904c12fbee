"""Carries commands to Redis and replies back over one connection, and says plainly what a failure means.

Half-duplex: one batch of commands out, all their replies in. It never sends anything twice.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError

from llmbridge.errors import RedisUnavailable
from llmbridge.log.connections import LONGEST_PAUSE_SECONDS, Breaker, Connector
from llmbridge.log.link import Link
from llmbridge.redis_url import Address

Command = tuple[str | bytes | int, ...]
Reply = Any
"""What Redis answered, as hiredis decodes it; an error reply is redis-py's ResponseError in the list, not raised."""


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
        address: Address | None = None,
        troubled: Callable[[], None] = lambda: None,
    ) -> None:
        self.breaker = Breaker()
        self._connector = connector
        self._purpose = purpose
        self._address = address
        self._troubled = troubled
        self._link: Link | None = None
        self._connected_at = 0.0

    async def send(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands, at least one, and return their replies.

        Raises RedisUnavailable when nothing was sent (at once while a pause after a failed attempt lasts, else within
        the timeout), ConnectionBroken when the outcome is unknown (within the timeout).
        """
        # redis-py's own packing, in Python, takes ten times as long.
        packed = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]
        link = self._link
        if link is None or not link.is_open:
            # Redis may have closed it while it was idle. Noticed before anything is sent, nothing is in doubt.
            link = await self._connect()
        try:
            replies = await link.ask(packed, len(commands))
        except BusyLoadingError as error:
            # That it took the connection says nothing: each call would make a new one meanwhile.
            self.breaker.failed()
            self._troubled()
            raise RedisUnavailable(f"it is loading its data: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            self._troubled()
            raise ConnectionBroken(
                f"the connection failed before Redis answered, {type(error).__name__}: {error}"
            ) from error
        if any(isinstance(reply, ResponseError) and _is_demoted(reply) for reply in replies):
            await self.renew()
        return replies

    async def renew(self) -> None:
        """Connect anew before the next batch: this server is no primary any more, another one may be.

        Not where it was connected to just now: meanwhile it can be read from.
        """
        if asyncio.get_running_loop().time() - self._connected_at > LONGEST_PAUSE_SECONDS:
            await self.close()
        self._troubled()

    async def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            await self._link.close()

    async def _connect(self) -> Link:
        self.breaker.begin()
        try:
            async with asyncio.timeout(self._connector.timeout_seconds):
                link = self._link = await self._connector.open(self._purpose, self._address)
        except (RedisError, OSError, TimeoutError) as error:
            self.breaker.failed()
            self._troubled()
            raise RedisUnavailable(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.breaker.abandoned()
            raise
        self.breaker.succeeded()
        self._connected_at = asyncio.get_running_loop().time()
        return link


def _is_demoted(error: ResponseError) -> bool:
    # A script's error begins with its place (6.2), so that the library does not know it. The last is WAIT's.
    said = str(error)
    return isinstance(error, ReadOnlyError) or "READONLY " in said or "with replica instances" in said
