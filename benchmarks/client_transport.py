"""The bridge, spoken to by its client library as programs use it: one Client, default settings."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from benchmarks.grpc_transport import MODEL_ID
from benchmarks.rounds import Reading
from benchmarks.tokens import DeliveryError
from benchmarks.transport import Reader, Transport
from llmbridge.client import Client, Writer

ATTACH_S = 0.5
"""The library does not tell when a reader is attached, so all of them together get this long."""


class ClientTransport(Transport):
    """A writer for each stream that is open, a subscription for each reader."""

    def __init__(self, client: Client, closing: AsyncExitStack) -> None:
        self._client = client
        self._closing = closing
        self._writers: dict[str, tuple[Writer, AsyncExitStack]] = {}

    @classmethod
    async def connect(cls, target: str) -> "ClientTransport":
        """Opens the client. Raises ClientError."""
        async with AsyncExitStack() as opening:
            client = await opening.enter_async_context(Client(target))
            await client.is_serving()
            return cls(client, opening.pop_all())

    async def produce(
        self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool, awaited: bool = True
    ) -> None:
        """Appends by the stream's writer, which is opened with the first token and closed with the last one."""
        if stream not in self._writers:
            assert first_sequence == 1, "a writer begins with its stream"
            opening = AsyncExitStack()
            writer = await opening.enter_async_context(self._client.write(stream, MODEL_ID))
            self._writers[stream] = writer, opening
        writer, closing = self._writers[stream]
        for text in tokens:
            await writer.text(text)
        if final:
            del self._writers[stream]
            await closing.aclose()
        elif awaited:
            await writer.flush()

    async def read(self, stream: str, reading: Reading, reader: Reader) -> None:
        """Reads with a subscription."""
        assert reading is Reading.CURSOR, "groups have their own loads"
        attached = asyncio.get_running_loop().call_later(ATTACH_S, reader.attached)
        try:
            async with self._client.subscribe(stream, MODEL_ID) as subscription:
                async for message in subscription:
                    if texts := [token.text for token in message.tokens]:
                        reader.take(texts)
        finally:
            attached.cancel()
        if subscription.completion is None:
            raise DeliveryError(f"stream {stream}: ended without completion")

    async def close(self) -> None:
        """Closes writers that are open, then the client."""
        for _, closing in self._writers.values():
            await closing.aclose()
        await self._closing.aclose()
