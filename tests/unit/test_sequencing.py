"""The decision table as a pure function: the shared cases, and what must hold of any history."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbridge.model.records import MAX_SEQUENCE, Append, FinishReason, Producer, Sealer, checksum_of
from llmbridge.sequencing import Decision, LogState, Span, decide
from tests.support.append_cases import CASES, Case, request
from tests.support.model_log import Create, ModelLog, Seal

EPOCHS = st.sampled_from([0, 1, 2, MAX_SEQUENCE])
PRODUCERS = st.builds(Producer, EPOCHS, st.sampled_from(["", "a", "b"]))
FINISHES = st.none() | st.sampled_from(FinishReason)


@st.composite
def requests(draw: st.DrawFn, furthest: int = 12) -> Append:
    text = draw(st.text("ab", max_size=4))
    finish = draw(FINISHES) if text else draw(st.sampled_from(FinishReason))
    return request(draw(st.integers(0, furthest)), text, finish, draw(PRODUCERS))


@st.composite
def logs(draw: st.DrawFn) -> ModelLog:
    log = ModelLog()
    if draw(st.booleans()):
        log.store(Create())
    for step in draw(st.lists(requests(), max_size=5)):
        log.append(step)
    if draw(st.booleans()):
        log.seal(Seal(draw(st.sampled_from([Sealer.CANCEL, Sealer.LOST])), FinishReason.CANCELLED))
    return log


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_of_the_table(case: Case) -> None:
    log = ModelLog()
    for step in case.before:
        log.store(step)
    assert decide(log.state, case.request) is case.outcome.decision


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_model_answers_as_the_case_says(case: Case) -> None:
    log = ModelLog()
    for step in case.before:
        log.store(step)
    assert log.append(case.request) == case.outcome


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_decision_has_cases() -> None:
    assert {case.outcome.decision for case in CASES} == set(Decision)


@given(logs(), requests())
def test_what_was_appended_is_a_duplicate_when_it_is_repeated(log: ModelLog, asked: Append) -> None:
    if log.append(asked).decision is Decision.APPEND:
        numbered = asked._replace(first=log.last - asked.records + 1)
        assert decide(log.state, numbered) is Decision.DUPLICATE


@given(logs(), requests())
def test_nothing_follows_a_seal(log: ModelLog, asked: Append) -> None:
    decision = decide(log.state, asked)
    if log.sealed:
        assert decide(log.state, asked) in (Decision.DUPLICATE, Decision.COMPLETED)
        assert decide(log.state, asked._replace(first=0)) is Decision.COMPLETED
    else:
        assert decision is not Decision.COMPLETED


@given(logs(), requests())
def test_only_the_last_producer_or_a_higher_epoch_changes_or_repeats_anything(log: ModelLog, asked: Append) -> None:
    state = log.state
    if state is None or state.producer is None or state.sealer is not None:
        return
    entitled = asked.producer == state.producer or asked.producer.epoch > state.producer.epoch
    assert (decide(state, asked) is Decision.FENCED) is not entitled


@given(logs(), requests())
def test_an_append_continues_exactly_where_the_log_ends(log: ModelLog, asked: Append) -> None:
    last = log.last
    if decide(log.state, asked) is Decision.APPEND:
        assert asked.first in (0, last + 1)


@given(logs(), requests())
def test_an_overlap_leaves_something_to_append_and_its_rest_is_appended(log: ModelLog, asked: Append) -> None:
    if decide(log.state, asked) is Decision.OVERLAP:
        last = log.last
        assert 1 <= asked.first <= last < asked.first + asked.records - 1
        assert log.produce(asked).decision is Decision.APPEND
        assert log.last == asked.first + asked.records - 1


@given(logs(), requests(), st.lists(requests(), max_size=6))
def test_an_acknowledged_request_stays_acknowledged_to_its_producer(
    log: ModelLog, asked: Append, later: list[Append]
) -> None:
    if asked.first == 0 or log.append(asked).decision not in (Decision.APPEND, Decision.DUPLICATE):
        return
    for other in later:
        log.produce(other)
    state = log.state
    assert state is not None
    if state.producer == asked.producer:
        assert decide(state, asked) is Decision.DUPLICATE
    else:
        assert decide(state, asked) in (Decision.FENCED, Decision.GAP, Decision.COMPLETED)


def test_content_is_compared_where_a_request_covers_exactly_one_entry() -> None:
    producer = Producer(1, "")
    asked = Append(3, 2, None, producer, b"two")
    spans = (Span(1, 2, checksum_of(b"one")), Span(3, 4, checksum_of(b"two")))
    same = LogState(4, producer, entries=spans)
    assert decide(same, asked) is Decision.DUPLICATE
    assert decide(replace(same, entries=(spans[0], Span(3, 4, checksum_of(b"2")))), asked) is Decision.CONFLICT
    assert decide(replace(same, entries=(Span(1, 4, checksum_of(b"all")),)), asked) is Decision.DUPLICATE
    trimmed = replace(same, entries=())
    assert decide(trimmed, asked) is Decision.DUPLICATE
