"""Judges ledgers: what was acknowledged is delivered, in order, once, with its completion, or an explicit error.

Pure. An explicit error excuses only where Redis was allowed to lose data; everywhere else it is a finding of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

from tests.chaos.ledger import ReaderLedger, StreamLedger

_MOST_PROBLEMS = 30
# What a client is told where a log has lost its tail, or is gone.
_HISTORY_ERRORS = ("HistoryLost", "StreamNotFound")

_Problem = Callable[[str], None]


@dataclass(slots=True)
class Findings:
    """Counts over streams. Everything from `lost` to `unexpected_errors` must be 0."""

    streams: int = 0
    readers: int = 0
    sent: int = 0
    acknowledged: int = 0
    delivered: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    foreign: int = 0
    wrong_ends: int = 0
    hung: int = 0
    unexpected_errors: int = 0
    history_errors: int = 0
    """Readers that were told, by HistoryLost or by an end that is an error, of data that Redis was allowed to lose."""
    writers_told: int = 0
    """Writers that were told so."""
    longest_stall: float = 0.0
    problems: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Findings") -> None:
        for name in (each.name for each in fields(self)):
            if name == "longest_stall":
                self.longest_stall = max(self.longest_stall, other.longest_stall)
            elif name == "problems":
                self.problems += other.problems[: _MOST_PROBLEMS - len(self.problems)]
            else:
                setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def violations(self) -> int:
        return (
            self.lost
            + self.repeated
            + self.reordered
            + self.foreign
            + self.wrong_ends
            + self.hung
            + self.unexpected_errors
        )


def judge_all(streams: Iterable[StreamLedger]) -> Findings:
    """Judge streams and add up."""
    total = Findings()
    for stream in streams:
        total.add(judge(stream))
    return total


def judge(stream: StreamLedger) -> Findings:
    """Judge one stream, all of whose readers have ended or were given up."""
    found = Findings(
        streams=1,
        readers=len(stream.readers),
        sent=len(stream.sent_at),
        acknowledged=stream.acknowledged,
    )
    if stream.hung:
        found.hung += 1
        found.problems.append(f"{stream.name}: the writer hangs at {stream.acknowledged} of {len(stream.sent_at)}")
    if stream.error:
        found.errors[f"writer: {stream.error}"] += 1
        if stream.exposed:
            found.writers_told += 1
        else:
            found.unexpected_errors += 1
            found.problems.append(f"{stream.name}: the writer got {stream.error}")
    for reader in stream.readers:
        _judge_reader(stream, reader, found)
    return found


def _judge_reader(stream: StreamLedger, reader: ReaderLedger, found: Findings) -> None:
    def problem(what: str) -> None:
        found.problems.append(f"{stream.name}, reader {reader.name}: {what}")

    found.delivered += len(reader.received)
    found.longest_stall = max(found.longest_stall, reader.longest_wait)
    seen: set[int] = set()
    highest = 0
    for number in reader.received:
        if number in seen:
            found.repeated += 1
            problem(f"{number} came again")
        elif number < highest:
            found.reordered += 1
            problem(f"{number} came after {highest}")
        seen.add(number)
        highest = max(highest, number)
    if reader.foreign or highest > len(stream.sent_at):
        found.foreign += max(len(reader.foreign), 1)
        problem(f"what nobody sent: {reader.foreign[:3] or highest}")
    told = _is_told(stream, reader, found, problem)
    missing = [number for number in range(1, (highest if told else stream.acknowledged) + 1) if number not in seen]
    if missing:
        found.lost += len(missing)
        problem(f"{len(missing)} acknowledged tokens are missing, the first is {missing[0]}")
    _judge_end(stream, reader, highest, told, found, problem)


def _is_told(stream: StreamLedger, reader: ReaderLedger, found: Findings, problem: _Problem) -> bool:
    """Whether the reader was told that it did not get everything, and that may be."""
    if reader.error:
        found.errors[f"reader: {reader.error}"] += 1
        if stream.exposed and reader.error.startswith(_HISTORY_ERRORS):
            found.history_errors += 1
            return True
        found.unexpected_errors += 1
        problem(f"got {reader.error}")
        return False
    if stream.exposed and reader.finish == "ERROR" != stream.completed:
        found.errors["reader: an end that is an error"] += 1
        found.history_errors += 1
        return True
    return False


def _judge_end(
    stream: StreamLedger, reader: ReaderLedger, highest: int, told: bool, found: Findings, problem: _Problem
) -> None:
    if reader.hung:
        found.hung += 1
        problem(f"hangs after {highest} of {stream.acknowledged} acknowledged, {len(stream.sent_at)} sent")
    elif reader.error:
        return
    elif not reader.finish:
        found.wrong_ends += 1
        problem(f"ended after {highest} without a completion")
    elif reader.finish_number != highest + 1:
        found.wrong_ends += 1
        problem(f"the completion is number {reader.finish_number} behind {highest}")
    elif not told and reader.finish != (stream.completed or "ERROR"):
        found.wrong_ends += 1
        problem(f"the end is {reader.finish}, its writer's {stream.completed or 'an error'}")
