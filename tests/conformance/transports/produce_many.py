"""Requests to produce, of however many streams, over one ProduceMany call."""

import asyncio
from typing import Any

import grpc

from llmbridge.v1 import bridge_service_pb2 as pb
from tests.conformance.transport import CallFailed, Refusal
from tests.conformance.transports.grpc_stubs import refusal_of, refusal_of_call
from tests.conformance.transports.shared_call import SharedCall

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ProduceCall(SharedCall[pb.ProduceManyRequest]):
    """One call."""

    def __init__(self, call: Any) -> None:
        self._writers: dict[tuple[bytes, int, str], int] = {}
        self._receipts: dict[int, asyncio.Future[pb.Receipt]] = {}
        self._appends = 0
        self._why = Refusal("UNAVAILABLE", "the call was ended here", "", "", {}, None, None)
        super().__init__(call, pb.ProduceManyRequest)

    async def produce(self, request: pb.ProduceRequest) -> pb.ProduceResponse:
        """Append what a request says, by the writer that it says. Raises CallFailed."""
        self._appends += 1
        append = self._next.appends.add(
            tokens=request.tokens,
            writer=self._writer(request),
            first_sequence=request.first_sequence,
            append_id=self._appends,
        )
        if request.HasField("completion"):
            append.completion.CopyFrom(request.completion)
        receipt = self._receipts[self._appends] = asyncio.get_running_loop().create_future()
        self._has_next.set()
        told = await receipt
        if told.HasField("failure"):
            raise CallFailed(failure_of(told.failure))
        return pb.ProduceResponse(cursor=told.cursor, last_sequence=told.last_sequence, duplicate=told.duplicate)

    def _writer(self, request: pb.ProduceRequest) -> int:
        stream = request.stream.SerializeToString(deterministic=True)
        key = stream, request.producer_epoch, request.producer_id
        if key not in self._writers:
            self._writers[key] = len(self._writers)
            self._next.starts.add(
                writer=self._writers[key],
                stream=request.stream,
                producer_epoch=request.producer_epoch,
                producer_id=request.producer_id,
            )
        return self._writers[key]

    async def _read(self) -> None:
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                for receipt in answer.receipts:
                    waiting = self._receipts.pop(receipt.append_id)
                    # Whoever waited may have given up.
                    if not waiting.done():
                        waiting.set_result(receipt)
            raise AssertionError("the call ended OK though not all was said")
        except grpc.aio.AioRpcError as error:
            self._why = refusal_of_call(error)
        finally:
            for waiting in self._receipts.values():
                if not waiting.done():
                    waiting.set_exception(CallFailed(self._why))


def failure_of(failure: pb.Failure, trailing_cursor: str | None = None) -> Refusal:
    """Read how one of the things that share a call failed."""
    return refusal_of(_CODES[failure.code], failure.message, failure.status_details, trailing_cursor)
