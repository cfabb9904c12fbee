"""The hand-rolled service, spoken to over HTTP/1.1.

A client of its own on asyncio protocols, with keep-alive and only what the service needs: a full HTTP library would
cost more than the service under test.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import cast

from benchmarks.rounds import Reading
from benchmarks.tokens import DeliveryError
from benchmarks.transport import Reader, Transport

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


class _Connection(asyncio.Protocol):
    """Receives bytes; whoever waits is woken by each arrival and by the end."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._wake()

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def arrival(self) -> None:
        """Waits for more bytes. Raises ConnectionError if none will come."""
        if self._closed:
            raise ConnectionError("the service closed the connection")
        self._arrival = asyncio.get_running_loop().create_future()
        await self._arrival

    async def head(self) -> bytes:
        """Takes the response's head off the buffer. Raises DeliveryError unless the status is 200."""
        while (end := self.buffer.find(_HEAD_END)) < 0:
            await self.arrival()
        head = bytes(self.buffer[: end + 2])
        del self.buffer[: end + len(_HEAD_END)]
        if not head.startswith(b"HTTP/1.1 200"):
            raise DeliveryError(f"the service answered {head!r}")
        return head

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class HttpTransport(Transport):
    """Kept-alive connections for POSTs, one connection for each reader."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._idle: list[_Connection] = []

    async def produce(
        self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool, awaited: bool = True
    ) -> None:
        """Appends with one POST. The service knows no sequence numbers, so `first_sequence` is not sent."""
        assert awaited, "a POST is answered"
        body = json.dumps({"tokens": tokens, "done": final}).encode()
        connection = self._idle.pop() if self._idle else await self.connect()
        try:
            connection.send(
                f"POST /streams/{stream}/tokens HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            length = _content_length(await connection.head())
            while len(connection.buffer) < length:
                await connection.arrival()
            connection.buffer.clear()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    async def read(self, stream: str, reading: Reading, reader: Reader) -> None:
        """Reads with one GET of Server-Sent Events. It knows no groups."""
        assert reading is Reading.CURSOR, "only the bridge has groups"
        connection = await self.connect()
        try:
            connection.send(f"GET /streams/{stream} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
            await connection.head()
            reader.attached()
            events, done, ended = bytearray(), False, False
            while not ended:
                ended = unchunk(connection.buffer, events)
                complete, separator, rest = bytes(events).rpartition(b"\n\n")
                if separator:
                    events[:] = rest
                    texts: list[str] = []
                    for event in complete.split(b"\n\n"):
                        _, found, data = event.partition(b"data: ")
                        if found:
                            body = json.loads(data)
                            texts += body["tokens"]
                            done = body["done"]
                    if texts:
                        reader.take(texts)
                elif not ended:
                    await connection.arrival()
            if not done:
                raise DeliveryError(f"stream {stream}: the response ended before the stream")
        finally:
            connection.close()

    async def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def connect(self) -> _Connection:
        """Opens a connection; whoever does closes it."""
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self.host, self.port)
        return connection


def _content_length(head: bytes) -> int:
    length = _CONTENT_LENGTH.search(head)
    if length is None:
        raise DeliveryError(f"the service answered without a length: {head!r}")
    return int(length[1])


def unchunk(source: bytearray, sink: bytearray) -> bool:
    """Moves the whole chunks of a chunked body from source to sink; tells whether the last chunk was among them."""
    position, ended = 0, False
    while not ended and (line_end := source.find(b"\r\n", position)) >= 0:
        size = int(source[position:line_end], 16)
        chunk_end = line_end + 2 + size
        if len(source) < chunk_end + 2:
            break
        sink += source[line_end + 2 : chunk_end]
        position = chunk_end + 2
        ended = size == 0
    del source[:position]
    return ended
