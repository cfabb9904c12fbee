"""The producer rules as cases: what is stored, what is asked for, what must come of it. Data, for function and Lua."""

from dataclasses import dataclass

from llmbridge.model.records import MAX_SEQUENCE, Append, FinishReason, Producer, Sealer
from llmbridge.sequencing import Decision
from llmbridge.v1 import token_pb2
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.token_pb2 import Completion, Token
from tests.support.model_log import Create, Outcome, Seal, Step

STOP, LENGTH, CANCELLED, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.ERROR

NOBODY = Producer(0, "")
A = Producer(3, "a")
RIVAL = Producer(3, "b")
OLDER = Producer(2, "a")
NEWER = Producer(4, "a")


def fragment_of(text: str, finish: FinishReason | None = None) -> bytes:
    """Encode a token for each character, and a completion."""
    message = SubscribeResponse(tokens=[Token(text=character) for character in text])
    if finish is not None:
        reason = token_pb2.FinishReason.Value(f"FINISH_REASON_{finish.name}")
        message.completion.CopyFrom(Completion(finish_reason=reason))
    return message.SerializeToString(deterministic=True)


def request(first: int, text: str = "", finish: FinishReason | None = None, by: Producer = A) -> Append:
    """Ask for a token for each character, and a completion."""
    return Append(first, len(text), finish, by, fragment_of(text, finish))


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    before: tuple[Step, ...]
    request: Append
    outcome: Outcome


def _appended(last: int) -> Outcome:
    return Outcome(Decision.APPEND, (last,))


def _duplicate(last: int) -> Outcome:
    return Outcome(Decision.DUPLICATE, (last,))


def _gap(expected: int) -> Outcome:
    return Outcome(Decision.GAP, (expected,))


def _fenced(epoch: int) -> Outcome:
    return Outcome(Decision.FENCED, (epoch,))


def _overlap(last: int) -> Outcome:
    return Outcome(Decision.OVERLAP, (last,))


def _conflict(sequence: int) -> Outcome:
    return Outcome(Decision.CONFLICT, (sequence,))


def _completed(finish: FinishReason, sealer: Sealer) -> Outcome:
    return Outcome(Decision.COMPLETED, (finish, sealer))


ABSENT: tuple[Step, ...] = ()
CREATED: tuple[Step, ...] = (Create(),)
X, BCD = request(1, "x"), request(2, "bcd")
OPEN: tuple[Step, ...] = (X, BCD)
TAKEN_OVER: tuple[Step, ...] = (*OPEN, request(5, "e", by=NEWER))
ENDED: tuple[Step, ...] = (*OPEN, request(5, finish=STOP))
ENDED_AT_ONCE: tuple[Step, ...] = (request(1, "xy", STOP),)
CANCEL = Seal(Sealer.CANCEL, CANCELLED)
LOST = Seal(Sealer.LOST, ERROR)
BY_PRODUCER = _completed(STOP, Sealer.PRODUCER)
BY_CANCEL = _completed(CANCELLED, Sealer.CANCEL)
BY_LOST = _completed(ERROR, Sealer.LOST)


def _cases(stream: str, before: tuple[Step, ...], *rows: tuple[str, Append, Outcome]) -> tuple[Case, ...]:
    return tuple(Case(f"{stream}: {name}", before, asked, outcome) for name, asked, outcome in rows)


CASES: tuple[Case, ...] = (
    *_cases(
        "absent",
        ABSENT,
        ("assigned", request(0, "x"), _appended(1)),
        ("first 1", request(1, "xyz"), _appended(3)),
        ("by nobody", request(1, "x", by=NOBODY), _appended(1)),
        ("tokens and end", request(1, "xy", STOP), _appended(3)),
        ("end alone", request(1, finish=LENGTH), _appended(1)),
        ("end alone, assigned", request(0, finish=ERROR), _appended(1)),
        ("first 2", request(2, "x"), _gap(1)),
        ("end at 2", request(2, finish=STOP), _gap(1)),
        ("the largest first", request(MAX_SEQUENCE, "x"), _gap(1)),
    ),
    *_cases(
        "created",
        CREATED,
        ("assigned", request(0, "x"), _appended(1)),
        ("first 1", request(1, "xy"), _appended(2)),
        ("by nobody", request(1, "x", by=NOBODY), _appended(1)),
        ("tokens and end", request(1, "xy", STOP), _appended(3)),
        ("first 2", request(2, "x"), _gap(1)),
    ),
    *_cases(
        "open",
        OPEN,
        ("next", request(5, "e"), _appended(5)),
        ("assigned", request(0, "ef"), _appended(6)),
        ("next and end", request(5, "e", STOP), _appended(6)),
        ("end", request(5, finish=STOP), _appended(5)),
        ("end, assigned", request(0, finish=STOP), _appended(5)),
        ("an entry again", X, _duplicate(1)),
        ("another entry again", BCD, _duplicate(4)),
        ("two entries again", request(1, "xbcd"), _duplicate(4)),
        ("the beginning of an entry", request(2, "bc"), _duplicate(3)),
        ("the end of an entry", request(4, "d"), _duplicate(4)),
        ("the inside of an entry", request(3, "c"), _duplicate(3)),
        ("across the border of entries", request(1, "xb"), _duplicate(2)),
        ("inside, not compared", request(3, "?"), _duplicate(3)),
        ("an entry with other content", request(1, "?"), _conflict(1)),
        ("a longer entry with other content", request(2, "bc?"), _conflict(2)),
        ("an end on the last token", request(4, finish=STOP), _conflict(4)),
        ("a token again and an end on the next", request(3, "c", STOP), _conflict(4)),
        ("an end on the first token", request(1, finish=STOP), _conflict(1)),
        ("from the last on", request(4, "de"), _overlap(4)),
        ("from the first on", request(1, "xbcdefg"), _overlap(4)),
        ("all of it and the end", request(1, "xbcd", STOP), _overlap(4)),
        ("the last again and the end", request(4, "d", STOP), _overlap(4)),
        ("one missing", request(6, "f"), _gap(5)),
        ("one missing before the end", request(6, finish=STOP), _gap(5)),
        ("the largest first", request(MAX_SEQUENCE, "?"), _gap(5)),
        ("older, next", request(5, "e", by=OLDER), _fenced(3)),
        ("older, assigned", request(0, "e", by=OLDER), _fenced(3)),
        ("older, repeats", request(1, "x", by=OLDER), _fenced(3)),
        ("older, gap", request(9, "?", by=OLDER), _fenced(3)),
        ("older, end", request(5, finish=STOP, by=OLDER), _fenced(3)),
        ("rival, next", request(5, "e", by=RIVAL), _fenced(3)),
        ("rival, assigned", request(0, "e", by=RIVAL), _fenced(3)),
        ("rival, repeats", request(1, "x", by=RIVAL), _fenced(3)),
        ("newer, next", request(5, "e", by=NEWER), _appended(5)),
        ("newer, assigned", request(0, "e", by=NEWER), _appended(5)),
        ("newer, end", request(5, finish=ERROR, by=NEWER), _appended(5)),
        ("newer, from the first", request(1, "x", by=NEWER), _gap(5)),
        ("newer, from the last", request(4, "de", by=NEWER), _gap(5)),
        ("newer, one missing", request(6, "f", by=NEWER), _gap(5)),
        ("the largest epoch", request(5, "e", by=Producer(MAX_SEQUENCE, "")), _appended(5)),
    ),
    *_cases(
        "created and begun",
        (*CREATED, X),
        ("next", request(2, "y"), _appended(2)),
        ("again", X, _duplicate(1)),
        ("older", request(2, "y", by=OLDER), _fenced(3)),
    ),
    *_cases(
        "taken over",
        TAKEN_OVER,
        ("the one before, next", request(6, "f"), _fenced(4)),
        ("the one before, repeats its own", X, _fenced(4)),
        ("next", request(6, "f", by=NEWER), _appended(6)),
        ("again", request(5, "e", by=NEWER), _duplicate(5)),
        ("what the one before stored, again", request(1, "x", by=NEWER), _duplicate(1)),
        ("what the one before stored, otherwise", request(1, "?", by=NEWER), _conflict(1)),
    ),
    *_cases(
        "neighbouring large epochs",
        (request(1, "x", by=Producer(MAX_SEQUENCE - 1, "")),),
        ("one below", request(2, "y", by=Producer(MAX_SEQUENCE - 2, "")), _fenced(MAX_SEQUENCE - 1)),
        ("the same", request(2, "y", by=Producer(MAX_SEQUENCE - 1, "")), _appended(2)),
        ("one above", request(2, "y", by=Producer(MAX_SEQUENCE, "")), _appended(2)),
    ),
    *_cases(
        "a strange producer id",
        (request(1, "x", by=Producer(3, "é:{}% \x00\n")),),
        ("the same", request(2, "y", by=Producer(3, "é:{}% \x00\n")), _appended(2)),
        ("cut at its zero", request(2, "y", by=Producer(3, "é:{}% ")), _fenced(3)),
        ("empty", request(2, "y", by=Producer(3, "")), _fenced(3)),
    ),
    *_cases(
        "ended",
        ENDED,
        ("assigned", request(0, "?"), BY_PRODUCER),
        ("next", request(6, "?"), BY_PRODUCER),
        ("a token on the end's number", request(5, "?"), BY_PRODUCER),
        ("an entry again", X, _duplicate(1)),
        ("all tokens again", request(1, "xbcd"), _duplicate(4)),
        ("the last again and more", request(4, "de"), BY_PRODUCER),
        ("an entry with other content, not compared", request(1, "?"), _duplicate(1)),
        ("the end again", request(5, finish=STOP), _duplicate(5)),
        ("tokens and end again", request(3, "cd", STOP), _duplicate(5)),
        ("all again", request(1, "xbcd", STOP), _duplicate(5)),
        ("the end with another reason", request(5, finish=LENGTH), BY_PRODUCER),
        ("the end too early", request(4, finish=STOP), BY_PRODUCER),
        ("tokens again, the end too early", request(2, "bc", STOP), BY_PRODUCER),
        ("the end too late", request(6, finish=STOP), BY_PRODUCER),
        ("the end assigned", request(0, finish=STOP), BY_PRODUCER),
        ("rival repeats", request(1, "x", by=RIVAL), BY_PRODUCER),
        ("older repeats", request(1, "x", by=OLDER), BY_PRODUCER),
        ("newer, next", request(6, "?", by=NEWER), BY_PRODUCER),
        ("newer ends it again", request(5, finish=STOP, by=NEWER), BY_PRODUCER),
    ),
    *_cases(
        "ended at once",
        ENDED_AT_ONCE,
        ("all again", request(1, "xy", STOP), _duplicate(3)),
        ("the tokens again", request(1, "xy"), _duplicate(2)),
        ("the end again", request(3, finish=STOP), _duplicate(3)),
        ("with another reason", request(1, "xy", LENGTH), BY_PRODUCER),
        ("a token more", request(1, "xyz", STOP), BY_PRODUCER),
    ),
    *_cases(
        "cancelled",
        (*OPEN, CANCEL),
        ("next", request(5, "e"), BY_CANCEL),
        ("an entry again", BCD, _duplicate(4)),
        ("an entry again and more", request(2, "bcde"), BY_CANCEL),
        ("ends it as the cancel did", request(5, finish=CANCELLED), BY_CANCEL),
        ("ends it", request(5, finish=STOP), BY_CANCEL),
        ("newer", request(5, "e", by=NEWER), BY_CANCEL),
        ("older repeats", request(1, "x", by=OLDER), BY_CANCEL),
    ),
    *_cases(
        "lost",
        (*OPEN, LOST),
        ("next", request(5, "e"), BY_LOST),
        ("an entry again", X, _duplicate(1)),
        ("ends it as the bridge did", request(5, finish=ERROR), BY_LOST),
    ),
    *_cases(
        "cancelled before the first token",
        (*CREATED, CANCEL),
        ("first 1", request(1, "x"), BY_CANCEL),
        ("assigned", request(0, "x", by=NOBODY), BY_CANCEL),
        ("ends it as the cancel did", request(1, finish=CANCELLED, by=NOBODY), BY_CANCEL),
    ),
    *_cases(
        "cancelled before it was there",
        (CANCEL,),
        ("first 1", request(1, "x"), BY_CANCEL),
        ("by nobody", request(1, "x", by=NOBODY), BY_CANCEL),
    ),
)
