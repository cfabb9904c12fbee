"""Wake-ups: Redis Pub/Sub from the scripts, one channel per stream, one connection per process and server.

They may be lost at any time without losing a token: who is told nothing reads the log sooner or later. So nothing here
retries a message; a broken connection is made anew, every channel subscribed again, and every listener told to look.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hiredis import pack_command
from redis.exceptions import RedisError

from llmbridge.log.connections import LONGEST_PAUSE_SECONDS, Breaker, Connector
from llmbridge.log.link import Link
from llmbridge.redis_url import Address

PING_SECONDS = 5.0
"""A connection on which nothing came for so long is asked for a sign of life, and given up after as long again."""

CONFIRM_SECONDS = 2.0
"""A connection that does not confirm a subscription for so long is given up: no reader can attach over it."""

WATCH_SECONDS = 0.5

logger = logging.getLogger(__name__)

Listener = Callable[[bytes | None], None]
"""Called with each message, and with None where messages may have been lost."""


class Subscription:
    """One listener's channel. `confirmed` is set while Redis surely sends its messages here."""

    __slots__ = ("channel", "confirmed", "listener")

    def __init__(self, channel: bytes, listener: Listener) -> None:
        self.channel = channel
        self.listener = listener
        self.confirmed = asyncio.Event()


class SlotGone(RedisError):
    """The server has ended a subscription by itself: another one has the slot now."""


class Channels(Protocol):
    """Where to listen. May be told from any task; nothing here waits."""

    def subscribe(self, channel: str, listener: Listener) -> Subscription:
        """Listen to a channel, at most once each. Wait for `confirmed` before reading the log."""

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening."""

    async def run(self) -> None:
        """Keep connections and dispatch their messages until cancelled."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What subscribing and messages are called, which differs on a cluster."""

    subscribe: bytes
    unsubscribe: bytes
    subscribed: bytes
    unsubscribed: bytes
    message: bytes


PUB_SUB = Dialect(b"SUBSCRIBE", b"UNSUBSCRIBE", b"subscribe", b"unsubscribe", b"message")


class WakeUps:
    """Subscribes and dispatches over one connection. `run` must be running.

    `troubled` is called whenever it fails, with the error.
    """

    def __init__(
        self,
        connector: Connector,
        dialect: Dialect = PUB_SUB,
        address: Address | None = None,
        troubled: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._connector = connector
        self._address = address
        self._dialect = dialect
        self._message = dialect.message
        self._troubled = troubled
        self._subscriptions: dict[bytes, Subscription] = {}
        # A channel may be dropped and wanted again before Redis confirms either; only the last word counts.
        self._unconfirmed: dict[bytes, int] = {}
        self._outbox: list[bytes] = []
        self._link: Link | None = None
        self._asked_at = 0.0

    def subscribe(self, channel: str, listener: Listener) -> Subscription:
        """Listen to a channel, at most once each. Wait for `confirmed` before reading the log."""
        subscription = Subscription(channel.encode(), listener)
        self.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening."""
        if self.forget(subscription):
            self._post(self._dialect.unsubscribe, subscription.channel)

    def add(self, subscription: Subscription) -> None:
        """Listen on behalf of a subscription that was made elsewhere."""
        self._subscriptions[subscription.channel] = subscription
        self._post(self._dialect.subscribe, subscription.channel)

    def forget(self, subscription: Subscription) -> bool:
        """Stop listening without telling the server, which does not have the channel any more; False if it did not."""
        if self._subscriptions.get(subscription.channel) is not subscription:
            return False
        del self._subscriptions[subscription.channel]
        return True

    async def run(self) -> None:
        """Keep a connection and dispatch its messages until cancelled."""
        breaker = Breaker()
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                logger.warning("wake-ups are interrupted, readers poll meanwhile: %s", error)
                self._troubled(error)
            if asyncio.get_running_loop().time() - began > LONGEST_PAUSE_SECONDS:
                # It worked for a while. Where Redis refuses to subscribe, connecting alone proves nothing.
                breaker.succeeded()
            breaker.failed()
            await asyncio.sleep(breaker.pause_left)

    async def _listen(self) -> None:
        """Connect, subscribe to all and listen until it fails, with what ended it."""
        async with asyncio.timeout(PING_SECONDS):
            link = await self._connector.open("wakeups", self._address, self._dispatch)
        self._link = link
        try:
            for channel in self._subscriptions:
                self._post(self._dialect.subscribe, channel)
            await self._watch(link)
        finally:
            self._link = None
            self._outbox.clear()
            self._unconfirmed.clear()
            for subscription in self._subscriptions.values():
                subscription.confirmed.clear()
            await link.close()

    async def _watch(self, link: Link) -> None:
        clock = asyncio.get_running_loop().time
        pinged_at: float | None = None
        while True:
            await asyncio.wait([link.closed], timeout=WATCH_SECONDS)
            if link.error is not None:
                raise link.error
            now = clock()
            if self._unconfirmed and now - max(link.heard_at, self._asked_at) >= CONFIRM_SECONDS:
                raise TimeoutError(f"a subscription was not confirmed for {CONFIRM_SECONDS} s")
            if now - link.heard_at < PING_SECONDS:
                pinged_at = None
            elif pinged_at is None:
                pinged_at = now
                link.tell(pack_command(("PING",)))
            elif now - pinged_at >= PING_SECONDS:
                raise TimeoutError(f"no answer to a PING for {PING_SECONDS} s")

    def _post(self, verb: bytes, channel: bytes) -> None:
        if self._link is None:
            return  # The next connection begins with all subscriptions.
        if not self._outbox:
            # What is posted in one turn of the loop goes together.
            loop = asyncio.get_running_loop()
            self._asked_at = loop.time()
            loop.call_soon(self._send, self._link)
        self._outbox.append(pack_command((verb, channel)))  # type: ignore[arg-type]
        if verb == self._dialect.subscribe:
            self._unconfirmed[channel] = self._unconfirmed.get(channel, 0) + 1

    def _send(self, link: Link) -> None:
        if link is self._link:
            link.tell(b"".join(self._outbox))
            self._outbox.clear()

    def _dispatch(self, reply: Any) -> None:
        if type(reply) is not list:
            if isinstance(reply, Exception):
                raise reply
            return  # To a PING where there is no subscription.
        kind, channel = reply[0], reply[1]
        if kind == self._message:
            subscription = self._subscriptions.get(channel)
            if subscription is not None:
                subscription.listener(reply[-1])
        elif kind == self._dialect.subscribed:
            self._unconfirmed[channel] -= 1
            if self._unconfirmed[channel] == 0:
                del self._unconfirmed[channel]
                self._confirm(channel)
        elif kind == self._dialect.unsubscribed and self._is_confirmed(channel):
            raise SlotGone(f"it does not have {channel.decode(errors='replace')} any more")

    def _is_confirmed(self, channel: bytes) -> bool:
        subscription = self._subscriptions.get(channel)
        return subscription is not None and subscription.confirmed.is_set() and channel not in self._unconfirmed

    def _confirm(self, channel: bytes) -> None:
        subscription = self._subscriptions.get(channel)
        if subscription is not None:
            subscription.confirmed.set()
            # What was published before the confirmation did not come here.
            subscription.listener(None)
