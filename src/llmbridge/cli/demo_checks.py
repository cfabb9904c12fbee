"""What the demo measures and what has to hold, computed from what the producer noted and what the readers received.

Pure: no network, no clock, no terminal. All times are seconds of one process's time.monotonic().
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from llmbridge.v1 import token_pb2

__all__ = ["Check", "Cut", "Figures", "Outcome", "Reading", "Receipt", "Said", "figures"]

_QUOTED_CHARACTERS = 24


@dataclass(slots=True)
class Said:
    """What the model said, noted at the producer before anything of it went to the bridge."""

    prompt_at: float = 0.0
    text: str = ""
    reasoning: str = ""
    sent_at: list[float] = field(default_factory=list)
    """When each token was handed to the writer: token i at i - 1."""
    completion: token_pb2.Completion | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A token as it reached a reader."""

    sequence: int
    token: token_pb2.Token
    at: float


@dataclass(slots=True)
class Reading:
    """What one reader received, as it came, repetitions and all."""

    name: str
    receipts: list[Receipt] = field(default_factory=list)
    completions: list[tuple[int, token_pb2.Completion]] = field(default_factory=list)
    """With their sequences; there has to be one."""
    connected_at: list[float] = field(default_factory=list)
    """When each of its connections began, if they went over a line that can be cut."""
    cut_at: float | None = None
    """When its connection was cut, if it was."""
    error: str = ""
    """What ended the reading, if not the stream's end."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A reader's absence."""

    after: int
    """The last token it had before it was connected again."""
    away_seconds: float
    """From the cut to the first token after it."""
    missed: int
    """The tokens the producer sent meanwhile, all of them delivered afterwards."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One reader's figures. Latencies are in ms, None when there was nothing to measure."""

    tokens: int
    first_token_ms: float | None
    """From sending the prompt to the first token here."""
    p50_ms: float | None
    """From handing a token to the writer to its receipt here; without what came while the reader was away."""
    p99_ms: float | None
    cut: Cut | None


@dataclass(frozen=True, slots=True)
class Check:
    """Something that has to hold; `problem` says how it does not, and is empty when it does."""

    what: str
    problem: str

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return not self.problem


def figures(said: Said, reading: Reading) -> Figures:
    """Computes a reader's figures."""
    cut = _cut(said, reading)
    away = range(cut.after + 1, cut.after + 1 + cut.missed) if cut else range(0)
    delays = sorted(
        (receipt.at - said.sent_at[receipt.sequence - 1]) * 1e3
        for receipt in reading.receipts
        if 0 < receipt.sequence <= len(said.sent_at) and receipt.sequence not in away
    )
    return Figures(
        tokens=len(reading.receipts),
        first_token_ms=(reading.receipts[0].at - said.prompt_at) * 1e3 if reading.receipts else None,
        p50_ms=_percentile(delays, 0.50),
        p99_ms=_percentile(delays, 0.99),
        cut=cut,
    )


class Outcome:
    """The verdict on an answer that two readers received, one of which was to be cut off."""

    def __init__(self, said: Said, steady: Reading, cut: Reading) -> None:
        self.tokens = len(said.sent_at)
        """How many the answer has."""
        self.was_cut = Check("cut in the middle, resumed on a new connection", _cut_problem(said, cut))
        """Else the answer was too short or came too fast for that: what was received may be right all the same."""
        self.results = [(reading.name, figures(said, reading), _check(said, reading)) for reading in (steady, cut)]
        """Of each reader: the figures, and all that has to hold."""
        if self.was_cut.passed:
            self.results[1][2].append(self.was_cut)

    @property
    def is_right(self) -> bool:
        """Whether both received what the model said."""
        return all(check.passed for _, _, checks in self.results for check in checks)


def _check(said: Said, reading: Reading) -> list[Check]:
    tokens = [receipt.token for receipt in reading.receipts]
    checks = [
        Check("the text is what the model sent", _difference(said.text, "".join(t.text for t in tokens))),
        Check(f"all {len(said.sent_at)} tokens, each once, in order", _disorder(said, reading)),
        Check(f"record {len(said.sent_at) + 1} is the producer's completion", _completion_problem(said, reading)),
    ]
    if said.reasoning:
        checks.append(Check("so is the reasoning", _difference(said.reasoning, "".join(t.reasoning for t in tokens))))
    return checks


def _cut(said: Said, reading: Reading) -> Cut | None:
    if reading.cut_at is None:
        return None
    again_at = next((at for at in reading.connected_at if at > reading.cut_at), None)
    if again_at is None:
        return None
    before = [receipt.sequence for receipt in reading.receipts if receipt.at < again_at]
    # Without a token after it, the reader was away until its end was known.
    back_at = next((receipt.at for receipt in reading.receipts if receipt.at >= again_at), again_at)
    after = max(before, default=0)
    return Cut(
        after=after,
        away_seconds=back_at - reading.cut_at,
        missed=sum(at <= back_at for at in said.sent_at[after:]),
    )


def _cut_problem(said: Said, reading: Reading) -> str:
    if reading.cut_at is None:
        return f"the answer ended after {len(said.sent_at)} tokens, before the connection was to be cut"
    cut = _cut(said, reading)
    if cut is None:
        return "the reader did not connect again"
    if cut.after >= len(said.sent_at):
        return "the reader had the whole answer before its connection was cut"
    return ""


def _disorder(said: Said, reading: Reading) -> str:
    if not said.sent_at:
        return "the model said nothing"
    if reading.error:
        return reading.error
    received = [receipt.sequence for receipt in reading.receipts]
    sent = range(1, len(said.sent_at) + 1)
    for place, (expected, sequence) in enumerate(zip_longest(sent, received), start=1):
        if expected != sequence:
            return f"at place {place} came {sequence or 'nothing'} instead of {expected or 'nothing'}"
    return ""


def _completion_problem(said: Said, reading: Reading) -> str:
    if said.completion is None:
        return "the producer did not complete"
    if len(reading.completions) != 1:
        return f"the reader received {len(reading.completions)} completions"
    sequence, completion = reading.completions[0]
    if sequence != len(said.sent_at) + 1:
        return f"its number is {sequence} after {len(said.sent_at)} tokens"
    if completion != said.completion:
        return "it differs from what was sent"
    if completion.finish_reason == token_pb2.FINISH_REASON_ERROR:
        return f"the model failed: {completion.error_message}"
    return ""


def _difference(said: str, received: str) -> str:
    if said == received:
        return ""
    place = next(i for i, (a, b) in enumerate(zip_longest(said, received)) if a != b)
    end = place + _QUOTED_CHARACTERS
    return f"at character {place + 1} came {received[place:end]!r} instead of {said[place:end]!r}"


def _percentile(ascending: Sequence[float], share: float) -> float | None:
    # The nearest rank: a value that was measured, never one in between.
    return ascending[math.ceil(share * len(ascending)) - 1] if ascending else None
