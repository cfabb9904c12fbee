"""One open call that is given messages: what readers, a member of a group and a watcher of the feed have in common.

When to wait, when to say that the call is alive, how it is told to end, and what can be told of it from outside; not
what the messages are.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Protocol

from llmbridge.errors import BridgeError, Draining, RedisUnavailable

LONGEST_PAUSE_SECONDS = 0.5
"""How long an attached call rests between attempts while Redis is unreachable."""

HELD_AFTER_SECONDS = 0.1
"""Writing takes a moment also where nothing holds it: only a message that waits for longer is held."""


class State(Enum):
    """What an attached call is doing."""

    ATTACHING = auto()
    """It is finding its place."""
    LIVE = auto()
    """It has everything, and waits for more."""
    CATCHING_UP = auto()
    """It is reading what it does not have yet."""
    HELD = auto()
    """Its client takes nothing: a message waits for the transport's flow control."""


Ending = Callable[[], BridgeError]
"""Makes the error that something ends with, at the moment when it ends."""


class Attendee(Protocol):
    """Whatever is attached, as the registry sees it: a call, or one of the subscriptions that share a call."""

    @property
    def cursor(self) -> str:
        """The cursor of the last record handed out, as the client gets it; empty where a cursor means nothing."""

    @property
    def lag(self) -> int:
        """How many records come after the cursor, as far as this process knows; 0 where a cursor means nothing."""

    @property
    def last_taken_at(self) -> float:
        """When the client last took a message, or was attached, by the event loop's clock in seconds."""

    @property
    def held_seconds(self) -> float:
        """For how long the client has been keeping it from going on; 0 where it does not."""

    @property
    def state(self) -> State:
        """What it is doing at this moment."""

    def beat(self) -> None:
        """Have it send a heartbeat if one is due."""

    def drain(self) -> None:
        """Have it end with Draining after what is on its way."""

    def end(self, ending: Ending) -> None:
        """Have it end with an error, also where its client takes nothing.

        One that is ending already ends as it does.
        """


class Attached(ABC):
    """Gives one call its messages. Used by one task."""

    def __init__(self, heartbeat_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._heartbeat_seconds = heartbeat_seconds
        self._ended = False
        self._draining = False
        self._change: asyncio.Future[None] | None = None
        self._scope: asyncio.Timeout | None = None
        self._ending: Ending | None = None
        self._last_message_at = self._loop.time()
        self._last_taken_at = self._last_message_at
        # The transport has the last message from when it is returned until the next one is asked for.
        self._handing_over = False
        self._attaching = True

    @property
    def cursor(self) -> str:
        """The cursor of the last record handed out, as the client gets it; empty where a cursor means nothing."""
        return ""

    @property
    def lag(self) -> int:
        """How many records come after the cursor, as far as this process knows; 0 where a cursor means nothing."""
        return 0

    @property
    def last_taken_at(self) -> float:
        """When the client last took a message, or was attached, by the event loop's clock in seconds."""
        return self._last_taken_at

    @property
    def held_seconds(self) -> float:
        """For how long the last message has been waiting to be taken; 0 if none is."""
        return self._loop.time() - self._last_message_at if self._handing_over else 0.0

    @property
    def state(self) -> State:
        """What the call is doing at this moment."""
        if self._attaching:
            return State.ATTACHING
        if self.held_seconds >= HELD_AFTER_SECONDS:
            return State.HELD
        has_everything = self.lag == 0 if self._handing_over else self._change is not None
        return State.LIVE if has_everything else State.CATCHING_UP

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run the call, in which `end` raises its error; then let go of what it holds, which `end` does not disturb."""
        try:
            async with asyncio.timeout(None) as self._scope:
                try:
                    yield
                finally:
                    self._scope = None
        except TimeoutError:
            if self._ending is None:
                raise
            raise self._ending() from None
        finally:
            await self.detach()

    def end(self, ending: Ending) -> None:
        """Have `open` raise an error, out of whatever is awaited there. One that is ending already ends as it does."""
        if self._scope is not None and self._ending is None:
            self._ending = ending
            self._scope.reschedule(0)

    async def next_message(self) -> bytes | None:
        """Wait for the next message, which may be a heartbeat; None after the end. The one before has been sent.

        Raises Draining with the cursor, and what `_advance` raises. While Redis is unreachable it waits.
        """
        self._attaching = False
        if self._handing_over:
            self._handing_over = False
            self._last_taken_at = self._loop.time()
        message = self._at_hand()
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
        self._handing_over = True
        return message

    async def detach(self) -> None:  # noqa: B027 - nothing to let go of is the common case
        """Let go of what the call holds. Called once, at its end, however it ends."""

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

    def _at_hand(self) -> bytes | None:
        """Give what was found already, as while attaching: neither the end nor a drain takes it back."""
        return None

    @abstractmethod
    async def _advance(self) -> bytes | None:
        """Give the next message if there is one, else wait, by `_wait`, and give None."""

    @abstractmethod
    def _heartbeat(self) -> bytes:
        """Encode a message that says no more than that the call is alive."""

    async def _wait(self, at_most_seconds: float | None = None) -> None:
        """Wait until `poke` is called, or until the time has passed."""
        if self._draining:
            return
        timer = None if at_most_seconds is None else self._loop.call_later(at_most_seconds, self.poke)
        self._change = self._loop.create_future()
        try:
            await self._change
        finally:
            self._change = None
            if timer is not None:
                timer.cancel()

    def _heartbeat_due(self) -> bool:
        return self._loop.time() - self._last_message_at >= self._heartbeat_seconds
