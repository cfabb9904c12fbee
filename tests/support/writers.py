"""A ProduceMany call as a client in any language would make it: what was sent, and what came of each append."""

import asyncio
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from llmbridge.v1.bridge_service_pb2 import (
    Failure,
    ProduceManyRequest,
    ProduceManyResponse,
    Receipt,
    WriterAppend,
    WriterStart,
)
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import Completion, Token
from tests.support.calls import PATIENCE_SECONDS

Refusal = tuple[grpc.StatusCode, str, dict[str, str]]
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def start(writer: int, stream: StreamRef, epoch: int = 1, producer_id: str = "p") -> WriterStart:
    return WriterStart(writer=writer, stream=stream, producer_epoch=epoch, producer_id=producer_id)


def append(writer: int, first: int, *texts: str, id: int = 0, completion: Completion | None = None) -> WriterAppend:  # noqa: A002
    """The append's id is `id`, or a number made of writer and sequence."""
    return WriterAppend(
        writer=writer,
        first_sequence=first,
        tokens=[Token(text=text) for text in texts],
        completion=completion,
        append_id=id or id_of(writer, first),
    )


def id_of(writer: int, first: int) -> int:
    return writer * 1_000_000 + first


def refusal(failure: Failure) -> Refusal:
    """Decode a failure, which must have the details that a call's own would have."""
    status, info = Status.FromString(failure.status_details), ErrorInfo()
    assert (status.code, status.message) == (failure.code, failure.message)
    assert status.details[0].Unpack(info)
    assert info.domain == "llmbridge"
    return _CODES[failure.code], info.reason.removeprefix("ERROR_REASON_"), dict(info.metadata)


class Writers:
    """One call. Fails at a receipt that comes twice, or for an append that was not sent."""

    def __init__(self, bridge: Any) -> None:
        self.call = bridge.ProduceMany()
        self.sent: set[int] = set()
        self.receipts: dict[int, Receipt] = {}
        """By append id, in the order in which they came."""
        self.ends: list[tuple[int, Refusal]] = []

    async def send(
        self,
        *appends: WriterAppend,
        starts: tuple[WriterStart, ...] = (),
        stops: tuple[int, ...] = (),
    ) -> None:
        self.sent |= {one.append_id for one in appends}
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.call.write(ProduceManyRequest(starts=starts, appends=appends, stops=stops))

    async def read(self) -> ProduceManyResponse | None:
        """Take one message; None at the end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = await self.call.read()
        if message is grpc.aio.EOF:
            return None
        assert isinstance(message, ProduceManyResponse)
        for receipt in message.receipts:
            assert receipt.append_id in self.sent
            assert receipt.append_id not in self.receipts
            self.receipts[receipt.append_id] = receipt
        self.ends += [(end.writer, refusal(end.failure)) for end in message.ends]
        return message

    async def settled(self) -> dict[int, Receipt]:
        """Read until every append that was sent has its receipt."""
        while self.sent - self.receipts.keys():
            assert await self.read() is not None, "the call ended before all receipts"
        return self.receipts

    async def told(self, ends: int = 1) -> list[tuple[int, Refusal]]:
        """Read until so many writers were told that they can append no more."""
        while len(self.ends) < ends:
            assert await self.read() is not None, "the call ended before it told"
        return self.ends

    async def finish(self) -> grpc.StatusCode:
        """Say that nothing more comes, read all, and tell how the call ended."""
        await self.call.done_writing()
        while await self.read() is not None:
            pass
        code: grpc.StatusCode = await self.call.code()
        return code
