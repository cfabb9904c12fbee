"""BridgeService.ProduceMany."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

from llmbridge.errors import InvalidField, InvalidRequest, LimitExceeded
from llmbridge.log.appending import Appended
from llmbridge.model.records import Append
from llmbridge.produce.many import MAX_WRITERS, Asked, End, ProduceCall, ProduceMany
from llmbridge.rpc import limits as check
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.methods import Context, parsed_part
from llmbridge.rpc.records import decode_records
from llmbridge.rpc.status import failure_of
from llmbridge.v1.bridge_service_pb2 import (
    ProduceManyRequest,
    ProduceManyResponse,
    WriterEnd,
    WriterStart,
)

MAX_APPENDS = 4_096
"""In a message, which is taken in one go while nobody else is served: about 12 ms."""

RECEIPTS_A_MESSAGE = 1_024
"""About 48 KiB of receipts, or 3 MiB where each tells of a failure as long as can be: peers take 4 MiB."""


class ProduceManyMethod:
    """Decodes, hands over, and encodes what comes of it."""

    def __init__(self, produce_many: ProduceMany, limits: Limits) -> None:
        self._produce_many = produce_many
        self._limits = limits

    async def __call__(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Serve one call."""

        async def report(asked: Sequence[Asked], outcomes: Sequence[Appended | Exception], ends: Sequence[End]) -> None:
            for message in _responses(asked, outcomes, ends):
                await context.write(message)

        with self._produce_many.open() as call:
            await context.send_initial_metadata(())
            reading = asyncio.create_task(self._read(requests, call), name="requests of ProduceMany")
            try:
                await call.run(report)
            finally:
                reading.cancel()
                await asyncio.wait((reading,))

    async def _read(self, requests: AsyncIterator[bytes], call: ProduceCall) -> None:
        """Take what comes, to the end. What goes wrong ends the call, once all that was taken is reported."""
        try:
            async for raw in requests:
                # Once finished, what still comes is nobody's: the client gets no receipt for it.
                if not call.finished:
                    self._take(parsed_part(ProduceManyRequest, raw), call)
                    if not call.is_open:
                        await call.room()
        except Exception as error:  # raised by the call
            call.finish(error)
        else:
            call.finish()

    def _take(self, message: ProduceManyRequest, call: ProduceCall) -> None:
        check.check_count("appends of a message", len(message.appends), MAX_APPENDS)
        check.check_count("stops of a message", len(message.stops), MAX_WRITERS)
        for start in message.starts:
            self._start(start, call)
        limits = self._limits
        max_bytes = limits.max_request_bytes
        writers = call.writers
        asked: list[Asked] = []
        size = 0
        for append in message.appends:
            append_id = append.append_id
            number = append.writer
            writer = writers.get(number)
            request: Append | Exception
            if writer is None:
                request = InvalidField("writer", f"{number} is not in use: start it first")
            elif writer.error is not None:
                request = writer.error
            else:
                try:
                    request = decode_records(append, writer.producer, limits)
                    length = len(request.fragment)
                    if length > max_bytes:
                        raise LimitExceeded("max_request_bytes", max_bytes, length, "send fewer tokens in one append")
                    size += length
                except InvalidRequest as error:
                    request = error
            asked.append((writer, append_id, request))
        if asked:
            call.take(asked, size)
        for number in message.stops:
            call.stop(number)

    def _start(self, start: WriterStart, call: ProduceCall) -> None:
        try:
            name = check.stream_name(start.stream, self._limits)
            producer = check.producer(start.producer_epoch, start.producer_id)
        except InvalidField as error:
            call.refuse(start.writer, error)
        else:
            call.start(start.writer, name, producer)


def _responses(
    asked: Sequence[Asked], outcomes: Sequence[Appended | Exception], ends: Sequence[End]
) -> Iterator[bytes]:
    """Encode messages, as few as there can be."""
    response = ProduceManyResponse(ends=[WriterEnd(writer=writer, failure=failure_of(error)) for writer, error in ends])
    for start in range(0, len(asked), RECEIPTS_A_MESSAGE):
        if start:
            yield response.SerializeToString()
            response = ProduceManyResponse()
        end = start + RECEIPTS_A_MESSAGE
        _add_receipts(response, asked[start:end], outcomes[start:end])
    yield response.SerializeToString()


def _add_receipts(
    response: ProduceManyResponse, asked: Sequence[Asked], outcomes: Sequence[Appended | Exception]
) -> None:
    add = response.receipts.add
    error: Exception | None = None
    failure = None
    for (_, append_id, _), outcome in zip(asked, outcomes, strict=True):
        if type(outcome) is Appended:
            cursor, last_sequence, duplicate = outcome
            receipt = add(append_id=append_id, cursor=cursor, last_sequence=last_sequence)
            if duplicate:
                receipt.duplicate = True
        else:
            assert isinstance(outcome, Exception)
            if outcome is not error:  # One error may be that of a whole group.
                error, failure = outcome, failure_of(outcome)
            add(append_id=append_id, failure=failure)
