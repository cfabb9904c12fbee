"""Errors over HTTP: grpc-gateway's status table and body, and what a client's error becomes."""

import grpc
import pytest

from llmbridge.client.errors import ClientClosed, HistoryLost, LimitExceeded, Unavailable
from llmbridge.gateway.problems import Problem, http_status_of, problem_of, response_of

# As in grpc-gateway's documentation and its runtime.HTTPStatusFromCode.
STATUSES = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_is_that_of_grpc_gateway(code: grpc.StatusCode) -> None:
    assert http_status_of(code) == STATUSES[code.name]


def test_an_error_keeps_its_reason_metadata_and_delay() -> None:
    error = Unavailable(
        "later", code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING", metadata={"cursor": "c"}, retry_delay=0.25
    )
    problem = problem_of(error)
    response = response_of(problem)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert problem.body == {
        "code": 14,
        "message": "later",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "ERROR_REASON_DRAINING",
                "domain": "llmbridge",
                "metadata": {"cursor": "c"},
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.25s"},
        ],
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        # A connection that broke has many codes, and all of them mean: try again.
        (Unavailable("reset", code=grpc.StatusCode.UNKNOWN), 503, 14),
        (Unavailable("no answer", code=grpc.StatusCode.DEADLINE_EXCEEDED), 503, 14),
        (ClientClosed(), 503, 14),
        (LimitExceeded("too much", code=grpc.StatusCode.RESOURCE_EXHAUSTED), 429, 8),
        (HistoryLost("gone", code=grpc.StatusCode.OUT_OF_RANGE), 400, 11),
    ],
)
def test_what_has_no_reason_has_its_status(error: Unavailable, status: int, code: int) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.body["code"]) == (status, code)
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}
    assert problem.body["details"] == ([retry] if status == 503 else [])
    assert problem.headers == ({"retry-after": "1"} if status == 503 else {})


@pytest.mark.parametrize(("seconds", "text"), [(1.0, "1s"), (10.0, "10s"), (0.001, "0.001s"), (1.5, "1.5s")])
def test_a_delay_is_written_as_protobuf_does(seconds: float, text: str) -> None:
    problem = problem_of(Unavailable("x", code=grpc.StatusCode.UNAVAILABLE, retry_delay=seconds))
    assert problem.body["details"][0]["retryDelay"] == text


def test_a_problem_may_have_a_better_status_than_its_code() -> None:
    problem = Problem(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", status=413)
    assert (response_of(problem).status_code, problem.body["code"]) == (413, 8)
