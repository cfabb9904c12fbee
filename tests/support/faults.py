"""How the fake bridge's calls fail, with the same statuses as the real one sends."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Never, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc import error_details_pb2, status_pb2

from llmbridge.v1.bridge_service_pb2 import Failure

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CODES = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "MALFORMED_REQUEST": grpc.StatusCode.INVALID_ARGUMENT,
    "LIMIT_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SEQUENCE_GAP": grpc.StatusCode.ABORTED,
    "FENCED": grpc.StatusCode.FAILED_PRECONDITION,
    "COMPLETED": grpc.StatusCode.FAILED_PRECONDITION,
    "SEQUENCE_CONFLICT": grpc.StatusCode.FAILED_PRECONDITION,
    "RESTARTED": grpc.StatusCode.OUT_OF_RANGE,
    "TRIMMED": grpc.StatusCode.OUT_OF_RANGE,
    "LOST": grpc.StatusCode.OUT_OF_RANGE,
    "REWRITTEN": grpc.StatusCode.OUT_OF_RANGE,
    "EXPIRED": grpc.StatusCode.OUT_OF_RANGE,
    "STREAM_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "STREAM_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "GROUP_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "GROUP_SETTINGS_DIFFER": grpc.StatusCode.FAILED_PRECONDITION,
    "CONNECTION_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "DISCONNECTED": grpc.StatusCode.ABORTED,
    "CONNECTION_IDLE": grpc.StatusCode.UNAVAILABLE,
    "REDIS_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "APPEND_OUTCOME_UNKNOWN": grpc.StatusCode.UNAVAILABLE,
    "DRAINING": grpc.StatusCode.UNAVAILABLE,
    "WORKER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
"""The status that error_reason.proto documents with each reason."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How a call fails: by `reason` (with its documented code), or by `code` alone as a transport or proxy would.

    Of what shares a call, an append or a subscription fails by a `reason`; by a `code` alone, the call as a whole.
    """

    reason: str = ""
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    message: str = "injected"
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_delay: float | None = None
    after_storing: bool = False
    """Unary calls and appends: carry the request out first."""
    hang: bool = False
    """Don't answer at all, instead of failing; of a subscription: nothing more comes on its call."""
    after_records: int = 0
    """Subscriptions: deliver so many records first."""

    @property
    def status_code(self) -> grpc.StatusCode:
        return CODES.get(self.reason, self.code)

    def failure(self) -> Failure:
        """The fault of one of the things that share a call."""
        details = dict(self.trailers()).get("grpc-status-details-bin", b"")
        return Failure(code=self.status_code.value[0], message=self.message, status_details=details)

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """What is said beside code and message, encoded as the contract has it."""
        details: list[error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo] = []
        if self.reason:
            reason = f"ERROR_REASON_{self.reason}"
            details.append(error_details_pb2.ErrorInfo(reason=reason, domain="llmbridge", metadata=dict(self.metadata)))
        if self.retry_delay is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(round(self.retry_delay * 1000))
            details.append(retry)
        if not details:
            return ()
        status = status_pb2.Status(code=self.status_code.value[0], message=self.message)
        for detail in details:
            packed = PackedAny()
            packed.Pack(detail)
            status.details.append(packed)
        return (("grpc-status-details-bin", status.SerializeToString()),)


async def fail(context: Context, fault: Fault) -> Never:
    if fault.hang:
        await asyncio.Event().wait()
    await context.abort(fault.status_code, fault.message, fault.trailers())


@asynccontextmanager
async def maybe_fail(faults: deque[Fault], context: Context) -> AsyncIterator[None]:
    """Carry the block out with the next of `faults`, if there is one, before or after it."""
    fault = faults.popleft() if faults else None
    if fault is not None and not fault.after_storing:
        await fail(context, fault)
    yield
    if fault is not None:
        await fail(context, fault)
