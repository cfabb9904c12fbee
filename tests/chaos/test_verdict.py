"""The judge finds what is wrong in ledgers that were doctored so, and nothing in those that are right."""

from collections.abc import Callable

import pytest

from tests.chaos.ledger import ReaderLedger, StreamLedger, token_text
from tests.chaos.verdict import Findings, judge, judge_all


def reader(*received: int, **fields: object) -> ReaderLedger:
    """One that got these and then the completion, unless told otherwise."""
    end = {"finish": "STOP", "finish_number": max(received, default=0) + 1} | fields
    return ReaderLedger("r", received=list(received), **end)  # type: ignore[arg-type]


def stream(*readers: ReaderLedger, **fields: object) -> StreamLedger:
    """Five tokens, all acknowledged, and the end."""
    values = {"sent_at": [0.0] * 5, "acknowledged": 5, "completed": "STOP"} | fields
    return StreamLedger("s", readers=list(readers), **values)  # type: ignore[arg-type]


def violations(found: Findings) -> dict[str, int]:
    names = ("lost", "repeated", "reordered", "foreign", "wrong_ends", "hung", "unexpected_errors")
    assert bool(found.problems) == bool(found.violations)
    assert found.violations == sum(getattr(found, name) for name in names)
    return {name: getattr(found, name) for name in names if getattr(found, name)}


def test_nothing_is_wrong_with_what_is_right() -> None:
    found = judge(stream(reader(1, 2, 3, 4, 5), reader(1, 2, 3, 4, 5)))
    assert violations(found) == {}
    assert (found.streams, found.readers, found.sent, found.acknowledged, found.delivered) == (1, 2, 5, 5, 10)


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [
        (stream(reader(1, 2, 4, 5)), {"lost": 1}),
        (stream(reader(2, 3, 4, 5)), {"lost": 1}),
        (stream(reader(1, 2, 3)), {"lost": 2}),
        (stream(reader()), {"lost": 5}),
        (stream(reader(1, 2, 3, 4, 5), reader(1, 3, 5)), {"lost": 2}),
        (stream(reader(1, 2, 2, 3, 4, 5)), {"repeated": 1}),
        (stream(reader(1, 2, 3, 4, 5, 1, 2, 3, 4, 5)), {"repeated": 5}),
        (stream(reader(1, 3, 2, 4, 5)), {"reordered": 1}),
        (stream(reader(1, 2, 3, 4, 5, 6)), {"foreign": 1}),
        (stream(reader(1, 2, 3, 4, 5, foreign=["<t 1> as 6"])), {"foreign": 1}),
        (stream(reader(1, 2, 3, 4, 5, finish="")), {"wrong_ends": 1}),
        (stream(reader(1, 2, 3, 4, 5, finish="LENGTH")), {"wrong_ends": 1}),
        (stream(reader(1, 2, 3, 4, 5, finish="ERROR")), {"wrong_ends": 1}),
        (stream(reader(1, 2, 3, 4, 5, finish_number=7)), {"wrong_ends": 1}),
        (stream(reader(1, 2, 3, 4, 5, finish="", hung=True)), {"hung": 1}),
        (stream(reader(1, 2, finish="", hung=True)), {"hung": 1, "lost": 3}),
        (stream(hung=True), {"hung": 1}),
        (stream(reader(1, 2, 3, 4, 5, finish="", error="Unavailable")), {"unexpected_errors": 1}),
        (stream(reader(1, 2, finish="", error="HistoryLost LOST")), {"unexpected_errors": 1, "lost": 3}),
        (stream(error="Unavailable", completed=""), {"unexpected_errors": 1}),
    ],
    ids=str,
)
def test_each_fault_is_found(ledger: StreamLedger, expected: dict[str, int]) -> None:
    assert violations(judge(ledger)) == expected


def test_what_was_not_acknowledged_may_be_missing_or_there() -> None:
    for received in ((1, 2, 3), (1, 2, 3, 4)):
        assert violations(judge(stream(reader(*received), acknowledged=3))) == {}


@pytest.mark.parametrize(
    "told",
    [
        lambda: reader(1, 2, finish="", error="HistoryLost LOST"),
        lambda: reader(finish="", error="StreamNotFound"),
        lambda: reader(1, 2, finish="ERROR"),
    ],
)
def test_an_explicit_error_excuses_only_where_redis_was_allowed_to_lose(told: Callable[[], ReaderLedger]) -> None:
    allowed = judge(stream(told(), exposed=True))
    assert (violations(allowed), allowed.history_errors) == ({}, 1)
    forbidden = judge(stream(told()))
    assert forbidden.violations > 0
    assert forbidden.history_errors == 0


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [
        (stream(reader(1, 2, 4, 5), exposed=True), {"lost": 1}),
        (stream(reader(1, 3, finish="", error="HistoryLost LOST"), exposed=True), {"lost": 1}),
        (stream(reader(1, 2, 2, finish="", error="HistoryLost LOST"), exposed=True), {"repeated": 1}),
        (stream(reader(1, 2, 2, finish="ERROR"), exposed=True), {"repeated": 1}),
        (stream(reader(1, 2, finish="", error="Unavailable"), exposed=True), {"unexpected_errors": 1, "lost": 3}),
        (stream(reader(1, 2, 3, 4, 5, finish="", hung=True), exposed=True), {"hung": 1}),
    ],
    ids=str,
)
def test_an_allowed_loss_excuses_nothing_else(ledger: StreamLedger, expected: dict[str, int]) -> None:
    assert violations(judge(ledger)) == expected


def test_a_writer_that_was_told_of_an_allowed_loss() -> None:
    found = judge(stream(reader(1, 2, finish="ERROR"), exposed=True, error="SequenceGap", completed=""))
    assert (violations(found), found.writers_told) == ({}, 1)


def test_tokens_are_checked_against_their_own_text() -> None:
    ledger, got = StreamLedger("s"), ReaderLedger("r")
    assert [ledger.send(), ledger.send()] == [token_text("s", 1), token_text("s", 2)]
    ledger.receive(got, token_text("s", 1), 1)
    for text, sequence in ((token_text("t", 2), 2), (token_text("s", 2), 3), ("?", 2)):
        ledger.receive(got, text, sequence)
    assert got.received == [1]
    assert len(got.foreign) == 3


def test_nothing_comes_behind_the_end() -> None:
    ledger, got = StreamLedger("s"), ReaderLedger("r")
    ledger.receive(got, ledger.send(), 1)
    ledger.receive_end(got, "STOP", 2)
    assert (got.finish, got.finish_number, got.foreign) == ("STOP", 2, [])
    ledger.receive(got, token_text("s", 1), 1)
    ledger.receive_end(got, "STOP", 2)
    assert len(got.foreign) == 2


def test_an_acknowledgement_never_falls_and_counts_no_completion() -> None:
    ledger = StreamLedger("s")
    ledger.send()
    ledger.send()
    for last, expected in ((1, 1), (3, 2), (0, 2)):
        ledger.acknowledge(last)
        assert ledger.acknowledged == expected


def test_findings_add_up_and_keep_the_first_problems() -> None:
    found = judge_all(stream(reader(1, 2, longest_wait=float(i))) for i in range(100))
    assert (found.streams, found.lost, found.longest_stall, len(found.problems)) == (100, 300, 99.0, 30)
