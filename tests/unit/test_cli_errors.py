"""Every error of the client has an exit code and one line."""

from collections.abc import Iterator

import grpc
import pytest
import typer

from llmbridge.cli.errors import ExitCode, InputError, exit_code_of, explain, reporting
from llmbridge.cli.openai_source import ModelEndpointError
from llmbridge.client import (
    BridgeFailure,
    ClientClosed,
    ClientError,
    Completion,
    ConnectionNotFound,
    DataLost,
    DeadlineExceeded,
    Disconnected,
    FinishReason,
    GroupNotFound,
    GroupSettingsDiffer,
    HistoryLost,
    InvalidRequest,
    LimitExceeded,
    ProducerFenced,
    ProtocolViolation,
    ResponseFailed,
    SequenceConflict,
    SequenceGap,
    StreamCompleted,
    StreamExists,
    StreamNotFound,
    Unavailable,
)

WHERE = "host:1"


def sealed(by: str, how: str = "STOP") -> StreamCompleted:
    return StreamCompleted("x", metadata={"sealer": f"SEALER_{by}", "finish_reason": f"FINISH_REASON_{how}"})


CASES = [
    (Unavailable("refused"), ExitCode.UNAVAILABLE, "no answer from a bridge at host:1 (refused); is it running there?"),
    (
        Unavailable("Redis is away", reason="REDIS_UNAVAILABLE"),
        ExitCode.UNAVAILABLE,
        "the bridge at host:1 can't serve at present: Redis is away",
    ),
    (InvalidRequest("model_id: empty"), ExitCode.USAGE, "model_id: empty"),
    (LimitExceeded("max_readers is 2"), ExitCode.REFUSED, "max_readers is 2"),
    (StreamNotFound("no such stream"), ExitCode.NOT_FOUND, "no such stream"),
    (StreamExists("exists"), ExitCode.REFUSED, "exists"),
    (GroupNotFound("no such group"), ExitCode.NOT_FOUND, "no such group"),
    (GroupSettingsDiffer("differs"), ExitCode.REFUSED, "differs"),
    (ConnectionNotFound("no such connection"), ExitCode.NOT_FOUND, "no such connection"),
    (Disconnected("an operator"), ExitCode.REFUSED, "an operator"),
    (sealed("CANCEL", "CANCELLED"), ExitCode.CANCELLED, "the stream was cancelled"),
    (sealed("LOST", "ERROR"), ExitCode.REFUSED, "the bridge gave the producer up for lost and ended the stream"),
    (sealed("PRODUCER"), ExitCode.REFUSED, "the stream has its end already, with finish reason stop"),
    (ProducerFenced("x", metadata={"epoch": "3"}), ExitCode.REFUSED, "another producer has the stream, with epoch 3"),
    (
        SequenceGap("x", metadata={"expected": "3", "received": "1"}),
        ExitCode.REFUSED,
        "the stream's next record is 3, this producer's is 1: it has another producer's records, or has lost some",
    ),
    (SequenceConflict("conflict"), ExitCode.REFUSED, "conflict"),
    (HistoryLost("trimmed"), ExitCode.HISTORY_LOST, "trimmed"),
    (DataLost("lost from 3 on"), ExitCode.HISTORY_LOST, "lost from 3 on"),
    (DeadlineExceeded("not within 5 s"), ExitCode.UNAVAILABLE, "not within 5 s"),
    (
        BridgeFailure("NOT_FOUND", code=grpc.StatusCode.NOT_FOUND),
        ExitCode.NOT_FOUND,
        "the bridge at host:1 has no service of that name",
    ),
    (
        BridgeFailure("no method", code=grpc.StatusCode.UNIMPLEMENTED),
        ExitCode.FAILED,
        "what answers at host:1 is not a bridge, or another version of it: no method",
    ),
    (BridgeFailure("incident 5"), ExitCode.FAILED, "BridgeFailure: incident 5"),
    (ProtocolViolation("a hole"), ExitCode.FAILED, "ProtocolViolation: a hole"),
    (ClientClosed(), ExitCode.FAILED, "ClientClosed: the client is closed"),
    (ResponseFailed(Completion(error_message="broke")), ExitCode.RESPONSE_FAILED, "the response failed: broke"),
]


@pytest.mark.parametrize(("error", "code", "line"), CASES, ids=lambda value: type(value).__name__)
def test_code_and_line(error: ClientError, code: ExitCode, line: str) -> None:
    assert explain(error, WHERE) == (code, line)


def test_no_kind_of_error_was_forgotten() -> None:
    def leaves(kind: type[ClientError]) -> Iterator[type[ClientError]]:
        if not kind.__subclasses__():
            yield kind
        for below in kind.__subclasses__():
            yield from leaves(below)

    known = {kind for kind in leaves(ClientError) if kind.__module__.startswith("llmbridge.")}
    assert {type(error) for error, _, _ in CASES} >= known


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (StreamNotFound("no\nsuch stream"), 5, "llmbridge: no such stream; look elsewhere\n"),
        (HistoryLost("gone"), 7, "llmbridge: gone\n"),
        (ModelEndpointError("no model"), 3, "llmbridge: no model\n"),
        (InputError("no input"), 3, "llmbridge: no input\n"),
    ],
)
def test_the_line_goes_to_standard_error(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, reporting(WHERE, {StreamNotFound: "look elsewhere"}):
        raise error
    assert caught.value.exit_code == code
    assert capsys.readouterr() == ("", line)


def test_a_note_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    error = HistoryLost("gone")
    error.add_note("llmbridge: and the end could not be stored")
    with pytest.raises(typer.Exit), reporting(WHERE):
        raise error
    assert capsys.readouterr().err == "llmbridge: gone; and the end could not be stored\n"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), reporting(WHERE):
        raise ZeroDivisionError


def test_ends_have_exit_codes() -> None:
    bad = {FinishReason.ERROR: ExitCode.RESPONSE_FAILED, FinishReason.CANCELLED: ExitCode.CANCELLED}
    for reason in FinishReason:
        assert exit_code_of(reason) is bad.get(reason, ExitCode.DONE)
