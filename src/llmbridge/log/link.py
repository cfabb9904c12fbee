"""An open connection to Redis: bytes out, replies in as they come, with nothing of asyncio's streams in between.

Knows nothing of what is sent, nor of what error replies mean; how connections are made and made again is decided by
`connections` and by who uses them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import InvalidResponse


def refuse(_: Any) -> None:
    """Hear nothing: raise an error for whatever is said unasked."""
    raise NotConnected("it said something that it had not been asked")


class Link(asyncio.Protocol):
    """One connection, for as long as it lasts. Its owner closes it.

    `hear` is called with each reply that answers no `ask`, as Pub/Sub's messages; what it raises ends the connection.
    Nothing waits until what is written has left this process: its users have no more than one batch, or a subscription
    for each channel, under way.
    """

    def __init__(self, timeout_seconds: float, hear: Callable[[Any], None] = refuse) -> None:
        self.error: Exception | None = None
        """Why it has ended."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the socket is closed; never fails."""
        self.heard_at = 0.0
        """When something came last, by the loop's clock."""
        self._loop = asyncio.get_running_loop()
        self._hear = hear
        self._timeout_seconds = timeout_seconds
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=DefaultParser.parse_error)
        self._answer: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._missing = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, connection: AbstractConnection) -> None:
        """Take over what redis-py has connected, and said all that it had to say on. Raises redis-py's ConnectionError.

        `connection` has nothing to do with it any more.
        """
        writer = connection._writer
        if writer is None or writer.is_closing() or await connection.can_read():
            raise NotConnected("it has ended, or said more than it was asked")
        # The writer is kept because from Python 3.13 on it closes its connection when it goes.
        self._writer, self._transport = writer, writer.transport
        connection._writer = connection._reader = None
        self._transport.set_protocol(self)
        self.heard_at = self._loop.time()

    @property
    def is_open(self) -> bool:
        """False from the moment at which this process could know that it has ended: what is sent then would be lost."""
        return self.error is None and not self._transport.is_closing()

    def tell(self, packed: bytes) -> None:
        """Send packed commands whose replies `hear` gets."""
        if self.is_open:
            self._transport.write(packed)

    async def ask(self, packed: bytes, replies: int) -> list[Any]:
        """Send so many packed commands, at least one, and give their replies; error replies are among them.

        One at a time. Raises what ended the connection: OSError (TimeoutError after the timeout, which ends it, too)
        or RedisError. Being cancelled ends it: what comes next would answer an earlier question.
        """
        if self.error is not None:
            raise self.error
        self._answer = self._loop.create_future()
        self._missing = replies
        self._transport.write(packed)
        self._deadline = self._loop.time() + self._timeout_seconds
        if self._timer is None:
            # One for all questions of so much time: a timer for each, or asyncio.timeout, is a tenth of an exchange.
            self._timer = self._loop.call_at(self._deadline, self._check_time)
        try:
            return await self._answer
        except BaseException:
            self.end(NotConnected("whoever asked has left"))
            raise
        finally:
            # They may be large, and the next question late.
            self._answer, self._replies = None, []

    def end(self, error: Exception) -> None:
        """Have it closed, without waiting for anything; whoever waits for replies gets the error."""
        if self.error is not None:
            return
        self.error = error
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def close(self) -> None:
        """Close it. Waits for nothing of the other side."""
        self.end(NotConnected("it was closed"))
        await asyncio.wait([self.closed])

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self.heard_at = self._loop.time()
        reader = self._reader
        try:
            reader.feed(data)
            # False is hiredis' word for "no more whole replies"; RESP2 has no such reply.
            while (reply := reader.gets()) is not False:
                if self._missing:
                    self._take_reply(reply)
                else:
                    self._hear(reply)
        except Exception as error:  # the event loop would close the connection and tell nobody
            self.end(error)

    def eof_received(self) -> None:
        """Note that Redis has closed it."""
        self.end(NotConnected("Redis closed it"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that it is gone."""
        self.end(exc or NotConnected("it was lost"))
        self.closed.set_result(None)

    def _take_reply(self, reply: Any) -> None:
        # Those of redis-py's errors that say something of the connection or the server, not of the command.
        if isinstance(reply, NotConnected):
            raise reply
        self._replies.append(reply)
        self._missing -= 1
        if not self._missing and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._replies)

    def _check_time(self) -> None:
        self._timer = None
        if not self._missing:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_time)
        else:
            self.end(TimeoutError(f"no answer for {self._timeout_seconds:g} s"))
