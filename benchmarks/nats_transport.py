"""NATS JetStream, spoken to with its own client, nats-py.

One JetStream stream in memory holds everything, a subject for each of the benchmark's streams; each reader has an
ordered consumer of its own on its subject, from the beginning. An ordered consumer notices a gap and is made anew at
it, which is the nearest to what the bridge promises. Messages carry no id for deduplication: that would make them
dearer.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Mapping, Sequence

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import PubAck, StorageType

from benchmarks.rounds import Reading
from benchmarks.tokens import DeliveryError
from benchmarks.transport import Reader, Transport

STREAM = "bench"
ACK_TIMEOUT_S = 30.0
MAX_CONSUMERS = 20_000
"""Without a number of one's own the server allows 1,000 (since 2.15)."""
_END = b"\n."
"""Behind the last token's text. Tokens of one message are divided by line ends."""


class NatsTransport(Transport):
    """One or more connections, taken in turn."""

    def __init__(self, connections: Sequence[Client]) -> None:
        self._connections = connections
        contexts = [connection.jetstream(timeout=ACK_TIMEOUT_S) for connection in connections]
        self._contexts = itertools.cycle(contexts)
        self._writer = contexts[0]
        self._unawaited: dict[str, list[asyncio.Future[PubAck]]] = {}

    @classmethod
    async def connect(cls, target: str, connections: int) -> "NatsTransport":
        """Connects, and makes the JetStream stream if it does not exist. Raises nats.errors.Error."""
        transport = cls([await nats.connect(f"nats://{target}", allow_reconnect=False) for _ in range(connections)])
        await transport._writer.add_stream(
            name=STREAM, subjects=[_subject("*")], storage=StorageType.MEMORY, max_consumers=MAX_CONSUMERS
        )
        return transport

    async def produce(
        self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool, awaited: bool = True
    ) -> None:
        """Publishes one message. Its acknowledgement is awaited, or, if not `awaited`, with the final one's."""
        payload = _payload(tokens, final=final)
        if awaited:
            await self._writer.publish(_subject(stream), payload)
            return
        pending = self._unawaited.setdefault(stream, [])
        pending.append(await self._writer.publish_async(_subject(stream), payload))
        if final:
            await asyncio.gather(*self._unawaited.pop(stream))

    async def step(self, sequence: int, texts: Mapping[str, str], *, final: bool) -> Awaitable[None]:
        """Publishes a message for each stream; the acknowledgements come behind."""
        publish = self._writer.publish_async
        acks = [await publish(_subject(stream), _payload([text], final=final)) for stream, text in texts.items()]
        return _all(acks)

    async def read(self, stream: str, reading: Reading, reader: Reader) -> None:
        """Reads with an ordered push consumer."""
        assert reading is Reading.CURSOR, "only the bridge has groups"
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def take(message: Msg) -> None:
            if ended.done():
                return
            body, end, _ = message.data.partition(_END)
            try:
                reader.take(body.decode().split("\n"))
            except DeliveryError as error:
                ended.set_exception(error)
            else:
                if end:
                    ended.set_result(None)

        context = next(self._contexts)
        subscription = await context.subscribe(_subject(stream), stream=STREAM, ordered_consumer=True, cb=take)
        reader.attached()
        await ended
        await subscription.unsubscribe()

    async def close(self) -> None:
        """Closes all connections."""
        for connection in self._connections:
            await connection.close()


def _subject(stream: str) -> str:
    return f"bench.{stream}"


def _payload(tokens: Sequence[str], *, final: bool) -> bytes:
    return "\n".join(tokens).encode() + _END * final


async def _all(acks: Sequence[asyncio.Future[PubAck]]) -> None:
    await asyncio.gather(*acks)
