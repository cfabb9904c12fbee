"""A writer's outbox: whatever is lost, refused and sent again, the log gets what was accepted, once and in order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmbridge.client.outbox import MAX_BATCH_BYTES, Batch, Outbox, OutboxLimits, encoded
from llmbridge.v1.bridge_service_pb2 import WriterAppend
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, Completion, Token

STOP = Completion(finish_reason=FINISH_REASON_STOP)
ROOMY = OutboxLimits(unsent_tokens=4_096, unsent_bytes=1_048_576, kept_bytes=4_194_304)


def outbox(limits: OutboxLimits = ROOMY, first_sequence: int = 1) -> Outbox:
    return Outbox(first_sequence, limits)


def texts(batch: Batch) -> list[str]:
    return [token.text for token in WriterAppend.FromString(batch.body).tokens]


def accept(box: Outbox, *records: str | Token | Completion) -> None:
    box.accept([encoded(record, 7) for record in records], completing=isinstance(records[-1], Completion))


def send(box: Outbox) -> Batch:
    batch = box.next_batch()
    box.note_stored()
    return batch


@given(text=st.text(), now_ms=st.integers(0, 2**62), json=st.booleans())
def test_records_are_encoded_as_an_append_would(text: str, now_ms: int, json: bool) -> None:
    token = Token(json=text, timestamp_ms=now_ms) if json else Token(text=text, timestamp_ms=now_ms)
    record = token if json else text
    assert encoded(record, now_ms) == WriterAppend(tokens=[token]).SerializeToString()
    end = Completion(finish_reason=FINISH_REASON_STOP, error_message=text)
    assert encoded(end, now_ms) == WriterAppend(completion=end).SerializeToString()


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(TypeError, match="WriterAppend"):
        encoded(WriterAppend(), 0)  # type: ignore[arg-type]


def test_a_batch_is_a_whole_append() -> None:
    box = outbox(first_sequence=5)
    accept(box, "a", Token(reasoning="b"), STOP)
    batch = box.next_batch()
    assert WriterAppend.FromString(batch.body) == WriterAppend(
        tokens=[Token(text="a", timestamp_ms=7), Token(reasoning="b")], completion=STOP, first_sequence=5
    )
    assert (batch.first_sequence, batch.last_sequence, batch.completes) == (5, 7, True)
    assert (box.accepted_through, box.stored_through) == (7, 4)
    box.note_stored()
    assert (box.accepted_through, box.stored_through, box.has_more) == (7, 7, False)


def test_a_batch_has_at_most_1024_records_and_256_kib() -> None:
    box = outbox()
    accept(box, *["x"] * 1_500)
    assert [len(texts(send(box))) for _ in range(2)] == [1_024, 476]
    accept(box, *["x" * 50_000] * 7, STOP)
    sizes, completes = [], []
    while box.has_more:
        batch = send(box)
        assert len(batch.body) <= MAX_BATCH_BYTES
        sizes.append(len(texts(batch)))
        completes.append(batch.completes)
    assert (sizes, completes) == ([5, 2], [False, True])


def test_what_is_larger_than_a_batch_goes_alone() -> None:
    box = outbox()
    accept(box, "a", "x" * 300_000, "b")
    assert [list(map(len, texts(send(box)))) for _ in range(3)] == [[1], [300_000], [1]]


def test_room_is_bounded_but_what_is_too_large_by_itself_finds_some() -> None:
    box = outbox(OutboxLimits(unsent_tokens=4, unsent_bytes=100, kept_bytes=0))
    assert box.has_room_for(1_000, 1_000_000)
    accept(box, "a", "b", "c")
    assert box.has_room_for(1, 10)
    assert not box.has_room_for(2, 10)
    assert not box.has_room_for(1, 100)
    box.next_batch()
    assert box.has_room_for(1_000, 1_000_000)


def test_what_is_kept_is_bounded() -> None:
    box = outbox(OutboxLimits(unsent_tokens=10, unsent_bytes=100_000, kept_bytes=3_000))
    for _ in range(10):
        accept(box, "x" * 600)
        send(box)
    assert not box.go_back(7)
    assert box.go_back(8)
    assert (box.stored_through, send(box).first_sequence) == (7, 8)


def test_a_record_in_the_middle_brings_back_its_whole_batch() -> None:
    box = outbox()
    for words in ("ab", "cde", "f"):
        accept(box, *words)
        send(box)
    accept(box, "g")
    assert box.go_back(4)
    assert [texts(send(box)) for _ in range(3)] == [["c", "d", "e"], ["f"], ["g"]]
    for never_stored in (0, 8, 100):
        assert not box.go_back(never_stored)


def test_a_refused_batch_is_divided_until_one_record_is_left() -> None:
    box = outbox()
    accept(box, *"abcde", STOP)
    sizes = []
    while True:
        sizes.append(len(texts(box.next_batch())) + box.next_batch().completes)
        if not box.divide():
            break
    assert sizes == [6, 3, 1]
    assert texts(box.next_batch()) == ["a"]
    send(box)
    assert box.next_batch().first_sequence == 2


def test_what_was_stored_once_is_not_divided() -> None:
    box = outbox()
    accept(box, *"abcd")
    send(box)
    assert box.go_back(1)
    box.next_batch()
    assert not box.divide()


def test_abandoning_leaves_nothing_but_the_end() -> None:
    box = outbox()
    accept(box, *"abc")
    send(box)
    accept(box, *"def")
    box.next_batch()
    accept(box, "g")
    box.abandon(2, encoded(STOP, 0))
    batch = send(box)
    assert (batch.first_sequence, batch.last_sequence, batch.completes, texts(batch)) == (2, 2, True, [])
    assert not box.has_more
    assert not box.go_back(1)
    with pytest.raises(RuntimeError, match="completion"):
        accept(box, "x")


class Histories(RuleBasedStateMachine):
    """An outbox and a log that takes what the contract allows it to take, loses its tail and refuses what is large."""

    @initialize(kept_bytes=st.sampled_from([0, 700, 1_500, 100_000]), first=st.integers(1, 3))
    def begin(self, kept_bytes: int, first: int) -> None:
        self.first = first
        self.box = outbox(OutboxLimits(8, 10_000, kept_bytes), first)
        self.accepted: list[str] = []
        self.log: list[str] = []
        self.sent: dict[int, bytes] = {}
        self.lost_for_good = False
        self.completing = False

    @precondition(lambda self: not self.completing and not self.lost_for_good)
    @rule(words=st.lists(st.text("abc", max_size=3), min_size=1, max_size=5), ends=st.integers(0, 9))
    def write(self, words: list[str], ends: int) -> None:
        if ends == 0:
            self.completing = True
            accept(self.box, *words, STOP)
            self.accepted += [*words, "STOP"]
        else:
            accept(self.box, *words)
            self.accepted += words

    @precondition(lambda self: self.box.has_more and not self.lost_for_good)
    @rule(answered=st.booleans(), largest=st.sampled_from([1, 3, 1_024]))
    def send(self, answered: bool, largest: int) -> None:
        batch = self.box.next_batch()
        records = [*texts(batch), *["STOP"] * batch.completes]
        begin = batch.first_sequence - self.first
        if begin > len(self.log):
            if not self.box.go_back(self.first + len(self.log)):
                self.lost_for_good = True
            return
        if len(records) > largest and self.box.divide():
            for number in [number for number in self.sent if number >= batch.first_sequence]:
                del self.sent[number]
            return
        assert self.sent.setdefault(batch.first_sequence, batch.body) == batch.body
        assert batch.last_sequence == batch.first_sequence + len(records) - 1
        assert self.log[begin : begin + len(records)] == records[: len(self.log) - begin]
        self.log += records[max(len(self.log) - begin, 0) :]
        if answered:
            self.box.note_stored()

    @rule(keep=st.integers(0, 30))
    def lose_tail(self, keep: int) -> None:
        del self.log[keep:]

    @invariant()
    def the_log_is_a_beginning_of_what_was_accepted(self) -> None:
        assert self.log == self.accepted[: len(self.log)]
        assert self.box.accepted_through == self.first + len(self.accepted) - 1

    def teardown(self) -> None:
        if not hasattr(self, "box"):
            return
        for _ in range(1_000):
            if self.lost_for_good or not self.box.has_more:
                break
            self.send(answered=True, largest=1_024)
        else:
            raise AssertionError("it does not come to an end")
        if not self.lost_for_good and self.box.anything_stored:
            assert self.box.stored_through == self.box.accepted_through


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
