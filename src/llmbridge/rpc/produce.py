"""BridgeService.Produce."""

from llmbridge.model.records import Append
from llmbridge.produce.append import Produce
from llmbridge.rpc import limits as check
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.records import decode_records
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, ProduceResponse


class ProduceMethod:
    """Decodes, appends, encodes."""

    def __init__(self, produce: Produce, limits: Limits) -> None:
        self._produce = produce
        self._limits = limits

    async def __call__(self, request: ProduceRequest) -> ProduceResponse:
        """Serve one call."""
        name = check.stream_name(request.stream, self._limits)
        appended = await self._produce.append(name, decode_append(request, self._limits))
        return ProduceResponse(
            cursor=appended.cursor_text, last_sequence=appended.last_sequence, duplicate=appended.duplicate
        )


def decode_append(request: ProduceRequest, limits: Limits) -> Append:
    """Check the records of a request and take them over; consumes the request. Raises InvalidField, LimitExceeded."""
    producer = check.producer(request.producer_epoch, request.producer_id)
    return decode_records(request, producer, limits)
