"""BridgeService.Cancel and KeepAlive."""

from llmbridge.errors import InvalidField
from llmbridge.produce.stop import Stop
from llmbridge.rpc import limits as check
from llmbridge.rpc.convert import finish_reason_to_proto, sealer_to_proto
from llmbridge.rpc.limits import MAX_REASON_BYTES, Limits
from llmbridge.v1.bridge_service_pb2 import CancelRequest, CancelResponse, KeepAliveRequest, KeepAliveResponse


class CancelMethod:
    """Decodes, cancels, encodes."""

    def __init__(self, stop: Stop, limits: Limits) -> None:
        self._stop = stop
        self._limits = limits

    async def __call__(self, request: CancelRequest) -> CancelResponse:
        """Serve one call."""
        name = check.stream_name(request.stream, self._limits)
        if (size := len(request.reason.encode())) > MAX_REASON_BYTES:
            raise InvalidField("reason", f"has {size} bytes, at most {MAX_REASON_BYTES} are allowed: shorten it")
        seal = await self._stop.cancel(name, request.reason)
        return CancelResponse(
            cursor=str(seal.cursor),
            last_sequence=seal.cursor.sequence,
            finish_reason=finish_reason_to_proto(seal.finish_reason),
            sealer=sealer_to_proto(seal.sealer),
            sealed_now=seal.sealed_now,
        )


class KeepAliveMethod:
    """Decodes, notes, encodes."""

    def __init__(self, stop: Stop, limits: Limits, producer_lost_ms: int) -> None:
        self._stop = stop
        self._limits = limits
        self._producer_lost_ms = producer_lost_ms

    async def __call__(self, request: KeepAliveRequest) -> KeepAliveResponse:
        """Serve one call."""
        name = check.stream_name(request.stream, self._limits)
        await self._stop.keep_alive(name, check.producer(request.producer_epoch, request.producer_id))
        return KeepAliveResponse(producer_lost_ms=self._producer_lost_ms)
