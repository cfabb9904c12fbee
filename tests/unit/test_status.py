"""Errors and their statuses: the tree, the table and the proto's documentation say the same."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from llmbridge import errors
from llmbridge.errors import BridgeError
from llmbridge.model.names import StreamName
from llmbridge.rpc.status import MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, abort, code_of
from llmbridge.v1.error_reason_pb2 import ErrorReason

PROTO = Path(__file__).parents[2] / "protos" / "llmbridge" / "v1" / "error_reason.proto"
NAME = StreamName("s", "m", "r")
CURSOR = "1760000000000000-40-9f86d081"

EXAMPLES: dict[type[BridgeError], BridgeError] = {
    type(error): error
    for error in (
        errors.InvalidField("stream.session_id", "is empty"),
        errors.MalformedRequest("ProduceRequest"),
        errors.LimitExceeded("max_tokens_per_request", 1_024, 5_000, "send several"),
        errors.SequenceGap(expected=7, received=9),
        errors.Fenced(3),
        errors.Completed("cancelled", "cancel"),
        errors.SequenceConflict(4),
        errors.Restarted(CURSOR),
        errors.Trimmed(CURSOR),
        errors.Lost(CURSOR),
        errors.Rewritten(CURSOR),
        errors.Expired(),
        errors.StreamNotFound(NAME),
        errors.StreamExists(NAME),
        errors.GroupNotFound("workers"),
        errors.GroupSettingsDiffer("workers", 30_000, 5),
        errors.ConnectionNotFound("5f0c"),
        errors.Disconnected(CURSOR),
        errors.RedisUnavailable("it is away"),
        errors.AppendOutcomeUnknown("it went away"),
        errors.Draining(CURSOR),
        errors.WorkerUnavailable(2),
        errors.ConnectionIdle(),
    )
}


def _leaves(kind: type[BridgeError] = BridgeError) -> set[type[BridgeError]]:
    below = kind.__subclasses__()
    return set().union(*(_leaves(one) for one in below)) if below else {kind}


LEAVES: list[type[BridgeError]] = sorted(_leaves(), key=lambda kind: kind.__name__)


@dataclass(frozen=True)
class Documented:
    """What error_reason.proto says of a reason."""

    code: grpc.StatusCode
    retry: bool
    metadata: set[str]


def _documentation() -> dict[str, Documented]:
    found = {}
    entries = re.findall(r"((?:^  //.*\n)+)^  ERROR_REASON_(\w+) = [1-9]", PROTO.read_text(), re.MULTILINE)
    for comment, reason in entries:
        said = re.match(r"  // ([A-Z_]+)(, with RetryInfo)?\.", comment)
        example = re.search(r"^  //     (\{.*\})$", comment, re.MULTILINE)
        assert said, comment
        assert example, comment
        keys = set(re.findall(r'"(\w+)":', example[1]))
        found[reason] = Documented(grpc.StatusCode[said[1]], said[2] is not None, keys)
    return found


class Aborted(Exception):
    """What the context raises."""


@dataclass
class Context:
    """Takes what a call is ended with."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailers: dict[str, Any] = field(default_factory=dict)

    async def abort(self, code: grpc.StatusCode, message: str, trailers: tuple[tuple[str, Any], ...]) -> None:
        self.code, self.message, self.trailers = code, message, dict(trailers)
        raise Aborted

    @property
    def status(self) -> Status:
        return Status.FromString(self.trailers["grpc-status-details-bin"])

    @property
    def info(self) -> ErrorInfo:
        info = ErrorInfo()
        assert self.status.details[0].Unpack(info)
        return info

    @property
    def retry_ms(self) -> int | None:
        retry = RetryInfo()
        found = [detail for detail in self.status.details if detail.Unpack(retry)]
        return retry.retry_delay.ToMilliseconds() if found else None


async def _ended_with(error: Exception) -> Context:
    context = Context()
    with pytest.raises(Aborted):
        await abort(context, error)  # type: ignore[arg-type]
    return context


def test_every_error_has_an_example_here() -> None:
    assert set(EXAMPLES) == _leaves()


def test_reasons_and_the_protos_enum_are_the_same() -> None:
    reasons = {f"ERROR_REASON_{kind.reason}" for kind in _leaves()}
    assert len(reasons) == len(_leaves())
    # A defect has no exception of its own.
    assert reasons | {"ERROR_REASON_UNSPECIFIED", "ERROR_REASON_INTERNAL"} == set(ErrorReason.keys())


def test_every_reason_is_documented() -> None:
    assert {f"ERROR_REASON_{reason}" for reason in _documentation()} == set(ErrorReason.keys()) - {
        "ERROR_REASON_UNSPECIFIED"
    }


def test_the_tree_is_drawn_as_it_is() -> None:
    def draw(kind: type[BridgeError], depth: int = 0) -> list[tuple[int, str]]:
        below = [one for parent in kind.__subclasses__() for one in ([parent] if parent.__name__[0] != "_" else [])]
        hidden = [one for one in kind.__subclasses__() if one.__name__[0] == "_"]
        below += [one for parent in hidden for one in parent.__subclasses__()]
        return [(depth, kind.__name__), *(line for one in below for line in draw(one, depth + 1))]

    assert errors.__doc__ is not None
    lines = re.findall(r"^    ((?:[│├└─ ]{4})*)(\w+)", errors.__doc__, re.MULTILINE)
    drawn = [(len(indent) // 4, name) for indent, name in lines]
    assert sorted(drawn) == sorted(draw(BridgeError))


@pytest.mark.parametrize("kind", LEAVES)
async def test_an_error_is_sent_as_it_is_documented(kind: type[BridgeError]) -> None:
    error = EXAMPLES[kind]
    documented = _documentation()[kind.reason]
    context = await _ended_with(error)
    assert context.code is code_of(error) is documented.code
    assert context.message == context.status.message == error.message
    assert context.status.code == context.code.value[0]
    assert context.info.domain == "llmbridge"
    assert context.info.reason == f"ERROR_REASON_{kind.reason}"
    assert set(context.info.metadata) == documented.metadata
    assert (context.retry_ms is not None) is documented.retry
    if isinstance(error, errors.Unavailable):
        assert context.retry_ms == error.retry_after_ms > 0


@pytest.mark.parametrize("kind", LEAVES)
def test_an_error_that_is_unavailable_is_one_where_a_retry_helps(kind: type[BridgeError]) -> None:
    assert issubclass(kind, errors.Unavailable) is (code_of(EXAMPLES[kind]) is grpc.StatusCode.UNAVAILABLE)


async def test_metadata_values_are_those_of_the_enums() -> None:
    assert (await _ended_with(errors.Completed("tool_calls", "producer"))).info.metadata == {
        "finish_reason": "FINISH_REASON_TOOL_CALLS",
        "sealer": "SEALER_PRODUCER",
    }


@pytest.mark.parametrize("cursor", [CURSOR, ""])
async def test_a_reader_that_is_sent_off_gets_its_cursor_in_the_trailers(cursor: str) -> None:
    context = await _ended_with(errors.Draining(cursor))
    assert context.trailers["llmbridge-cursor"] == cursor
    assert context.info.metadata == {"cursor": cursor}


async def test_a_call_without_a_cursor_gets_none() -> None:
    context = await _ended_with(errors.Draining())
    assert "llmbridge-cursor" not in context.trailers
    assert context.info.metadata == {}


async def test_a_defect_is_internal_and_tells_only_where_to_look(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        context = await _ended_with(KeyError("secret"))
    assert (context.code, context.info.reason) == (grpc.StatusCode.INTERNAL, "ERROR_REASON_INTERNAL")
    assert set(context.info.metadata) == _documentation()["INTERNAL"].metadata
    assert "secret" not in context.message
    assert context.info.metadata["incident"] in context.message
    assert context.info.metadata["incident"] in caplog.text
    assert "secret" in caplog.text


@pytest.mark.parametrize("character", ["x", "é", "🙂"])
async def test_what_a_client_sent_comes_back_in_trailers_that_peers_accept(character: str) -> None:
    name = StreamName(character * 1_024, character * 1_024, character * 1_024)
    context = await _ended_with(errors.StreamNotFound(name))
    assert len(context.message.encode()) <= MAX_MESSAGE_BYTES
    assert all(0 < len(value.encode()) <= MAX_VALUE_BYTES for value in context.info.metadata.values())
    # The message goes percent-encoded, the details in base64; 8 KiB is what peers accept by default.
    assert 3 * len(context.message.encode()) + len(context.trailers["grpc-status-details-bin"]) * 4 / 3 < 8_000
