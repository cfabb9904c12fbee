"""The demo's verdict: it must see every kind of fault, and pass only when there is none."""

from collections.abc import Callable

import pytest

from llmbridge.cli.demo_checks import Outcome, Reading, Receipt, Said, figures
from llmbridge.v1.token_pb2 import FINISH_REASON_ERROR, FINISH_REASON_LENGTH, FINISH_REASON_STOP, Completion, Token

WORDS = ["The", " cat", " sat", " on", " the", " mat"]


def said() -> Said:
    """Six tokens, one every 100 ms from 10.5 s on, for a prompt sent at 10 s."""
    return Said(
        prompt_at=10.0,
        text="".join(WORDS),
        sent_at=[10.5 + 0.1 * i for i in range(6)],
        completion=Completion(finish_reason=FINISH_REASON_STOP),
    )


def steady() -> Reading:
    """Each token 10 ms after it was sent."""
    receipts = [Receipt(i + 1, Token(text=word), 10.51 + 0.1 * i) for i, word in enumerate(WORDS)]
    return Reading("A", receipts, [(7, Completion(finish_reason=FINISH_REASON_STOP))])


def resumed() -> Reading:
    """Cut after token 2; connected again at 10.85 s, when tokens 3 and 4 had been sent."""
    reading = steady()
    reading.connected_at = [9.0, 10.85]
    reading.cut_at = 10.62
    reading.receipts[2] = Receipt(3, Token(text=WORDS[2]), 10.86)
    reading.receipts[3] = Receipt(4, Token(text=WORDS[3]), 10.86)
    return reading


def problems(reading: Reading, *, of: Said | None = None) -> list[str]:
    """What is wrong with a reading, whichever reader's it is."""
    outcome = Outcome(of or said(), reading, reading)
    one, other = ([check.problem for check in checks if not check.passed] for _, _, checks in outcome.results)
    assert one == other
    assert outcome.is_right is not bool(one)
    return one


def test_faultless_readings_pass() -> None:
    assert problems(steady()) == []
    outcome = Outcome(said(), steady(), resumed())
    assert outcome.is_right
    assert outcome.was_cut.passed
    assert [len(checks) for _, _, checks in outcome.results] == [3, 4]


def change_text(reading: Reading) -> None:
    reading.receipts[1] = Receipt(2, Token(text=" Cat"), 10.61)


def drop_a_token(reading: Reading) -> None:
    del reading.receipts[3]


def drop_the_last(reading: Reading) -> None:
    del reading.receipts[-1]


def repeat_a_token(reading: Reading) -> None:
    reading.receipts.insert(3, reading.receipts[2])


def swap_two(reading: Reading) -> None:
    reading.receipts[1:3] = reversed(reading.receipts[1:3])


def renumber(reading: Reading) -> None:
    reading.receipts[4] = Receipt(6, reading.receipts[4].token, 10.9)


def lose_the_end(reading: Reading) -> None:
    reading.completions.clear()


def end_twice(reading: Reading) -> None:
    reading.completions *= 2


def end_otherwise(reading: Reading) -> None:
    reading.completions = [(7, Completion(finish_reason=FINISH_REASON_LENGTH))]


def end_elsewhere(reading: Reading) -> None:
    reading.completions = [(8, Completion(finish_reason=FINISH_REASON_STOP))]


def give_up(reading: Reading) -> None:
    reading.error = "HistoryLost: trimmed"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (change_text, "at character 5 came 'Cat sat on the mat' instead of 'cat sat on the mat'"),
        (drop_a_token, "at place 4 came 5 instead of 4"),
        (drop_the_last, "at place 6 came nothing instead of 6"),
        (repeat_a_token, "at place 4 came 3 instead of 4"),
        (swap_two, "at place 2 came 3 instead of 2"),
        (renumber, "at place 5 came 6 instead of 5"),
        (lose_the_end, "the reader received 0 completions"),
        (end_twice, "the reader received 2 completions"),
        (end_otherwise, "it differs from what was sent"),
        (end_elsewhere, "its number is 8 after 6 tokens"),
        (give_up, "HistoryLost: trimmed"),
    ],
)
def test_every_fault_is_found(damage: Callable[[Reading], None], problem: str) -> None:
    reading = steady()
    damage(reading)
    assert problem in problems(reading)


def test_an_answer_that_is_an_error_does_not_pass() -> None:
    failed = Completion(finish_reason=FINISH_REASON_ERROR, error_message="out of memory")
    model, reading = said(), steady()
    model.completion = failed
    reading.completions = [(7, failed)]
    assert problems(reading, of=model) == ["the model failed: out of memory"]


def test_an_empty_answer_does_not_pass() -> None:
    model = Said(completion=Completion(finish_reason=FINISH_REASON_STOP))
    reading = Reading("A", completions=[(1, Completion(finish_reason=FINISH_REASON_STOP))])
    assert problems(reading, of=model) == ["the model said nothing"]


def test_reasoning_is_compared_apart_from_the_text() -> None:
    model, reading = said(), steady()
    model.reasoning = "hm"
    assert problems(reading, of=model) == ["at character 1 came '' instead of 'hm'"]


@pytest.mark.parametrize(
    ("cut_at", "connected_at", "problem"),
    [
        (None, [9.0], "the answer ended after 6 tokens, before the connection was to be cut"),
        (10.62, [9.0], "the reader did not connect again"),
        (11.2, [9.0, 11.5], "the reader had the whole answer before its connection was cut"),
    ],
)
def test_a_reading_without_a_real_cut_is_right_and_does_not_pass_for_one(
    cut_at: float | None, connected_at: list[float], problem: str
) -> None:
    reading = steady()
    reading.cut_at, reading.connected_at = cut_at, connected_at
    outcome = Outcome(said(), steady(), reading)
    assert outcome.was_cut.problem == problem
    assert outcome.was_cut not in outcome.results[1][2]
    assert outcome.is_right


def test_figures_of_a_steady_reading() -> None:
    result = figures(said(), steady())
    assert result.tokens == 6
    assert result.first_token_ms == pytest.approx(510)
    assert result.p50_ms == pytest.approx(10)
    assert result.p99_ms == pytest.approx(10)
    assert result.cut is None


def test_figures_of_a_resumed_reading_leave_the_absence_out_of_the_latency() -> None:
    result = figures(said(), resumed())
    assert result.cut is not None
    assert (result.cut.after, result.cut.missed) == (2, 2)
    assert result.cut.away_seconds == pytest.approx(0.24)
    assert result.p99_ms == pytest.approx(10)


def test_the_p99_is_the_slowest_of_few() -> None:
    reading = steady()
    reading.receipts[5] = Receipt(6, Token(text=WORDS[5]), 11.5)
    assert figures(said(), reading).p99_ms == pytest.approx(500)


def test_figures_of_nothing() -> None:
    result = figures(said(), Reading("A"))
    assert (result.tokens, result.first_token_ms, result.p50_ms, result.p99_ms) == (0, None, None, None)
