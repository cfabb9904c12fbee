"""The one table from exceptions to gRPC statuses, and how a status carries its details."""

import logging
import secrets
from dataclasses import dataclass
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from llmbridge import errors
from llmbridge.v1.bridge_service_pb2 import Failure

DOMAIN = "llmbridge"
DETAILS_KEY = "grpc-status-details-bin"
CURSOR_KEY = "llmbridge-cursor"
"""The trailer with a reader's cursor when the bridge drains."""

MAX_VALUE_BYTES = 1_024
MAX_MESSAGE_BYTES = 512
"""Peers give up on trailers over 8 KiB; what a client sent comes back in some, percent-encoded or in base64."""

logger = logging.getLogger(__name__)

_TABLE: tuple[tuple[type[errors.BridgeError], grpc.StatusCode], ...] = (
    (errors.LimitExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.SequenceGap, grpc.StatusCode.ABORTED),
    (errors.AppendRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.HistoryGone, grpc.StatusCode.OUT_OF_RANGE),
    (errors.StreamNotFound, grpc.StatusCode.NOT_FOUND),
    (errors.StreamExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.GroupNotFound, grpc.StatusCode.NOT_FOUND),
    (errors.GroupSettingsDiffer, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ConnectionNotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Disconnected, grpc.StatusCode.ABORTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
)


def code_of(error: errors.BridgeError) -> grpc.StatusCode:
    """Give the status of an error: that of the first row it belongs to."""
    return next(code for kind, code in _TABLE if isinstance(error, kind))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ends with an error. Refers to nothing that the call used."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]

    async def tell(self, context: grpc.aio.ServicerContext) -> NoReturn:  # type: ignore[type-arg]
        """End the call. Waits until the client has taken all messages before."""
        await context.abort(self.code, self.message, self.trailers)


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:  # type: ignore[type-arg]
    """End a call with an error, as `ending_of` tells it."""
    await ending_of(error).tell(context)


def ending_of(error: Exception) -> Ending:
    """Give an error's status. One that is no BridgeError is a defect: INTERNAL, with its traceback in the log."""
    trailers: list[tuple[str, str | bytes]] = []
    if isinstance(error, errors.BridgeError):
        code, message, reason, metadata = code_of(error), error.message, error.reason, error.metadata
    else:
        incident = secrets.token_hex(8)
        logger.error("incident %s", incident, exc_info=error)
        code, reason, metadata = grpc.StatusCode.INTERNAL, "INTERNAL", {"incident": incident}
        message = f"a defect of the bridge, its log has the details under incident {incident}"
    message = _cut(message, MAX_MESSAGE_BYTES)
    status = Status(code=code.value[0], message=message)
    info = ErrorInfo(reason=f"ERROR_REASON_{reason}", domain=DOMAIN)
    for key, value in metadata.items():
        info.metadata[key] = _cut(value, MAX_VALUE_BYTES)
    status.details.append(_packed(info))
    if isinstance(error, errors.Unavailable):
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        status.details.append(_packed(RetryInfo(retry_delay=delay)))
    if isinstance(error, errors.Draining) and error.cursor is not None:
        trailers.append((CURSOR_KEY, error.cursor))
    trailers.append((DETAILS_KEY, status.SerializeToString()))
    return Ending(code, message, tuple(trailers))


def failure_of(error: Exception) -> Failure:
    """Tell of an error that ends one of the things that share a call; see `ending_of`."""
    ending = ending_of(error)
    details = dict(ending.trailers)[DETAILS_KEY]
    assert isinstance(details, bytes), "a trailer whose key ends with -bin"
    return Failure(code=ending.code.value[0], message=ending.message, status_details=details)


def _packed(message: ErrorInfo | RetryInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _cut(text: str, at_most_bytes: int) -> str:
    return text.encode()[:at_most_bytes].decode(errors="ignore")
