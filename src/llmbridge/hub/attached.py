"""One open call that is given messages: what a reader, a member of a group and a watcher of the feed have in common.

When to wait, when to say that the call is alive, and how it is told to end; not what the messages are.
"""

import asyncio
import random
from abc import ABC, abstractmethod

from llmbridge.errors import Draining, RedisUnavailable

LONGEST_PAUSE_SECONDS = 0.5
"""How long an attached call rests between attempts while Redis is unreachable."""


class Attached(ABC):
    """Gives one call its messages. Used by one task."""

    def __init__(self, heartbeat_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._heartbeat_seconds = heartbeat_seconds
        self._ended = False
        self._draining = False
        self._change: asyncio.Future[None] | None = None
        self._last_message_at = self._loop.time()

    @property
    def cursor(self) -> str:
        """The cursor of the last record handed out, as the client gets it; empty where a cursor means nothing."""
        return ""

    async def next_message(self) -> bytes | None:
        """Wait for the next message, which may be a heartbeat; None after the end. The one before has been sent.

        Raises Draining with the cursor, and what `_advance` raises. While Redis is unreachable it waits.
        """
        message: bytes | None = None
        while message is None:
            if self._ended:
                return None
            if self._draining:
                raise Draining(self.cursor)
            try:
                message = await self._advance()
            except RedisUnavailable:
                await asyncio.sleep(random.uniform(0.1, 1) * LONGEST_PAUSE_SECONDS)
            if message is None and self._heartbeat_due():
                message = self._heartbeat()
        self._last_message_at = self._loop.time()
        return message

    def beat(self) -> None:
        """Have the call send a heartbeat if it waits and one is due."""
        if self._heartbeat_due():
            self.poke()

    def drain(self) -> None:
        """Have the call end with Draining after the message that it is sending."""
        self._draining = True
        self.poke()

    def poke(self) -> None:
        """Have the call look again if it waits."""
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    @abstractmethod
    async def _advance(self) -> bytes | None:
        """Give the next message if there is one, else wait for a change, by `_wait`, and give None."""

    @abstractmethod
    def _heartbeat(self) -> bytes:
        """Encode a message that says no more than that the call is alive."""

    async def _wait(self, change: asyncio.Future[None], at_most_seconds: float | None = None) -> None:
        """Wait until `change` is done, which `poke` does too, or until the time has passed."""
        if self._draining:
            return
        timer = None if at_most_seconds is None else self._loop.call_later(at_most_seconds, self.poke)
        self._change = change
        try:
            await change
        finally:
            self._change = None
            if timer is not None:
                timer.cancel()

    def _heartbeat_due(self) -> bool:
        return self._loop.time() - self._last_message_at >= self._heartbeat_seconds
