"""Errors as HTTP tells them: grpc-gateway's status table and body. Knows nothing of requests."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import grpc
from starlette.responses import JSONResponse

from llmbridge.client.errors import ClientClosed, ClientError, Unavailable

_HTTP_STATUSES: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}
"""grpc-gateway's own (runtime.HTTPStatusFromCode)."""

_TYPE_PREFIX = "type.googleapis.com/google.rpc."
_DOMAIN = "llmbridge"
_RETRY_SECONDS = 1.0
_UNREACHABLE = "the bridge can't be reached, or does not answer"


def http_status_of(code: grpc.StatusCode) -> int:
    """Give the HTTP status that grpc-gateway gives for a gRPC status."""
    return _HTTP_STATUSES[code]


class Problem(Exception):
    """A request that fails: what its response says."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        details: Sequence[Mapping[str, Any]] = (),
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = tuple(details)
        """google.protobuf.Any in its JSON form: ErrorInfo, and RetryInfo where trying again helps."""
        self.status = http_status_of(code) if status is None else status
        """The HTTP status: that of the code, except where HTTP has a better one."""
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The body that grpc-gateway writes."""
        return {"code": self.code.value[0], "message": self.message, "details": [dict(one) for one in self.details]}


def error_info(reason: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Make a google.rpc.ErrorInfo; `reason` as in error_reason.proto, without its prefix."""
    return {
        "@type": f"{_TYPE_PREFIX}ErrorInfo",
        "reason": f"ERROR_REASON_{reason}",
        "domain": _DOMAIN,
        "metadata": dict(metadata),
    }


def retry_info(seconds: float) -> dict[str, Any]:
    """Make a google.rpc.RetryInfo."""
    return {"@type": f"{_TYPE_PREFIX}RetryInfo", "retryDelay": f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"}


def invalid_field(field: str, message: str) -> Problem:
    """Make the problem of a request with a wrong field, as the bridge itself would tell it."""
    return Problem(grpc.StatusCode.INVALID_ARGUMENT, message, details=[error_info("INVALID_FIELD", {"field": field})])


def problem_of(error: ClientError, *, passes: bool = False) -> Problem:
    """Translate what a call to the bridge raised. `passes`: it says when to try again, also if the bridge did not."""
    retry_delay = error.retry_delay
    if isinstance(error, (ClientClosed, Unavailable)):
        # Broken connections have many codes; for the caller they all mean: try again.
        code = grpc.StatusCode.UNAVAILABLE
        passes = True
    else:
        code = error.code or grpc.StatusCode.INTERNAL
    if passes:
        retry_delay = retry_delay or _RETRY_SECONDS
    details = []
    headers = {}
    if error.reason:
        details.append(error_info(error.reason, error.metadata))
    if retry_delay > 0:
        details.append(retry_info(retry_delay))
        headers["retry-after"] = str(ceil(retry_delay))
    # What grpc says of a connection that broke names the bridge's address, which is nothing for strangers.
    is_grpcs = code is grpc.StatusCode.UNAVAILABLE and not error.reason
    return Problem(code, _UNREACHABLE if is_grpcs else error.message, details=details, headers=headers)


def response_of(problem: Problem) -> JSONResponse:
    """Write a problem as a response."""
    return JSONResponse(problem.body, status_code=problem.status, headers=problem.headers)
