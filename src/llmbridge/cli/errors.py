"""What a command says when it fails, and its exit code: one line on standard error, and a number for scripts.

The one place that turns the client's errors into either. Exit codes of all commands that talk to a bridge:

    0    done; tail: the response came to a good end (stop, length, tool calls or content filter)
    1    the answer is no (health: not serving), or the bridge has a defect
    2    the command line is wrong, or a field of it is refused by the bridge
    3    something besides the bridge is missing or failed: the model endpoint, a package, standard input
    4    the bridge can't be reached, or can't serve at present; trying again later helps
    5    there is no such stream, group or connection (or, for health, no such service)
    6    the stream, the group, an operator or a limit of the bridge does not allow it: it exists, has its end, has
         another producer or other settings
    7    history is lost: records that were asked for, or stored, are gone
    8    the response ended with an error
    9    the response was cancelled
    130  ended by Ctrl-C; 143 by SIGTERM; 141 because nobody reads standard output any more
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum

import grpc
import typer

from llmbridge.cli.openai_source import ModelEndpointError
from llmbridge.cli.standard_streams import forget_output
from llmbridge.client import (
    ClientError,
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
    ResponseFailed,
    Sealer,
    SequenceConflict,
    SequenceGap,
    StreamCompleted,
    StreamExists,
    StreamNotFound,
    Unavailable,
)

__all__ = ["ExitCode", "InputError", "exit_code_of", "explain", "fail", "quiet_when_unread", "reporting", "say"]

_NO_HINTS: Mapping[type[ClientError], str] = {}


class ExitCode(IntEnum):
    """The exit codes; the module's docstring says when each is used."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    MISSING = 3
    UNAVAILABLE = 4
    NOT_FOUND = 5
    REFUSED = 6
    HISTORY_LOST = 7
    RESPONSE_FAILED = 8
    CANCELLED = 9
    INTERRUPTED = 130
    NOBODY_READS = 141
    TERMINATED = 143


class InputError(Exception):
    """What a command is to read can't be read. The message is one line for people."""


def say(message: str) -> None:
    """Prints a line for people on standard error."""
    typer.echo(f"llmbridge: {' '.join(message.split())}", err=True)


def fail(message: str, code: ExitCode) -> typer.Exit:
    """Says what is wrong; the caller raises what this returns."""
    say(message)
    return typer.Exit(code)


def exit_code_of(finish_reason: FinishReason) -> ExitCode:
    """The exit code of a command that has seen a response's end."""
    if finish_reason is FinishReason.ERROR:
        return ExitCode.RESPONSE_FAILED
    if finish_reason is FinishReason.CANCELLED:
        return ExitCode.CANCELLED
    return ExitCode.DONE


@contextmanager
def reporting(address: str, hints: Mapping[type[ClientError], str] = _NO_HINTS) -> Iterator[None]:
    """Turns what a command's work raises into a line and an exit code; a defect keeps its traceback.

    `hints` say, for kinds of error, what to do in terms of the command's own options.
    """
    try:
        with quiet_when_unread():
            yield
    except ClientError as error:
        code, message = explain(error, address)
        advice = next((hint for kind, hint in hints.items() if isinstance(error, kind)), "")
        raise fail("; ".join(part for part in (message, *_notes(error), advice) if part), code) from None
    except (ModelEndpointError, InputError) as error:
        raise fail("; ".join((str(error), *_notes(error))), ExitCode.MISSING) from None


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Ends the command without a word when nobody reads its standard output any more, as in `… | head`."""
    try:
        yield
    except BrokenPipeError:
        # Else what is still buffered raises again when the interpreter flushes it.
        forget_output()
        raise typer.Exit(ExitCode.NOBODY_READS) from None


def explain(error: ClientError, address: str) -> tuple[ExitCode, str]:
    """The exit code for an error of the client, and what to tell the person at the terminal."""
    match error:
        case Unavailable(reason=""):
            return ExitCode.UNAVAILABLE, f"no answer from a bridge at {address} ({error}); is it running there?"
        case Unavailable():
            return ExitCode.UNAVAILABLE, f"the bridge at {address} can't serve at present: {error}"
        case DeadlineExceeded():
            return ExitCode.UNAVAILABLE, str(error)
        case InvalidRequest():
            return ExitCode.USAGE, str(error)
        case StreamNotFound() | GroupNotFound() | ConnectionNotFound():
            return ExitCode.NOT_FOUND, str(error)
        case HistoryLost() | DataLost():
            return ExitCode.HISTORY_LOST, str(error)
        case StreamCompleted():
            return _explain_completed(error)
        case ProducerFenced():
            return ExitCode.REFUSED, f"another producer has the stream, with epoch {error.epoch}"
        case SequenceGap():
            numbers = f"the stream's next record is {error.expected}, this producer's is {error.received}"
            return ExitCode.REFUSED, f"{numbers}: it has another producer's records, or has lost some"
        case ResponseFailed():
            return ExitCode.RESPONSE_FAILED, f"the response failed: {error}"
        case StreamExists() | LimitExceeded() | SequenceConflict() | GroupSettingsDiffer() | Disconnected():
            return ExitCode.REFUSED, str(error)
        case ClientError(code=grpc.StatusCode.NOT_FOUND):
            # Of streams it says more; what is left is the service that health asks for.
            return ExitCode.NOT_FOUND, f"the bridge at {address} has no service of that name"
        case ClientError(code=grpc.StatusCode.UNIMPLEMENTED):
            return ExitCode.FAILED, f"what answers at {address} is not a bridge, or another version of it: {error}"
        case _:
            return ExitCode.FAILED, f"{type(error).__name__}: {error}"


def _explain_completed(error: StreamCompleted) -> tuple[ExitCode, str]:
    if error.sealer is Sealer.CANCEL:
        return ExitCode.CANCELLED, "the stream was cancelled"
    if error.sealer is Sealer.LOST:
        return ExitCode.REFUSED, "the bridge gave the producer up for lost and ended the stream"
    return ExitCode.REFUSED, f"the stream has its end already, with finish reason {error.finish_reason.name.lower()}"


def _notes(error: BaseException) -> list[str]:
    return [note.removeprefix("llmbridge: ") for note in getattr(error, "__notes__", [])]
