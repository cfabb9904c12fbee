"""A ProduceMany call by itself: what waits goes together, the window, the writers, how it finishes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from llmbridge.errors import BridgeError, Draining, Fenced, InvalidField, LimitExceeded, SequenceGap
from llmbridge.log.appending import Appended, AppendLog, AppendOutcome, Item, Overlap
from llmbridge.log.ends import Ends
from llmbridge.log.keys import Keys, StreamKeys
from llmbridge.log.wakeups import Channels, Subscription
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, Producer
from llmbridge.produce.append import Produce
from llmbridge.produce.many import MAX_OUTSTANDING_APPENDS, MAX_OUTSTANDING_BYTES, MAX_WRITERS, ProduceCall, ProduceMany
from tests.support.append_cases import NEWER, A, request
from tests.support.model_log import WIRE

KEYS = Keys("t", 4)
NAME = StreamName("s", "m")
Answer = Callable[[Item], AppendOutcome | Exception]


def _stored(item: Item) -> AppendOutcome:
    last = item[1].first + item[1].records - 1
    return Appended(f"1-{last}-00000000", last, False)


@dataclass
class Log:
    """Notes each group; answers when it is let go."""

    answer: Answer = _stored
    groups: list[list[Append]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def keys_of(self, name: StreamName) -> StreamKeys:
        return KEYS.stream(name)

    async def append_all(self, items: Sequence[Item], source: object) -> list[AppendOutcome | Exception]:
        self.groups.append([asked for _, asked in items])
        await self.go.wait()
        return [self.answer(item) for item in items]


@dataclass
class Wakes:
    """Channels without Redis."""

    listeners: dict[str, Callable[[bytes | None], None]] = field(default_factory=dict)

    def subscribe(self, channel: str, listener: Callable[[bytes | None], None]) -> Subscription:
        self.listeners[channel] = listener
        return Subscription(channel.encode(), listener)

    def unsubscribe(self, subscription: Subscription) -> None:
        del self.listeners[subscription.channel.decode()]


@dataclass
class Rig:
    log: Log
    wakes: Wakes
    many: ProduceMany
    call: ProduceCall
    reported: list[tuple[list[int], list[Any], list[tuple[int, BridgeError]]]]
    run: "asyncio.Task[None]"

    def take(self, number: int, *asked: Append) -> None:
        writer = self.call.writers[number]
        self.call.take([(writer, one.first, one) for one in asked], sum(len(one.fragment) for one in asked))

    @property
    def answers(self) -> dict[int, Any]:
        return {append_id: answer for ids, answers, _ in self.reported for append_id, answer in zip(ids, answers)}  # noqa: B905

    @property
    def ends(self) -> list[tuple[int, str]]:
        return [(number, error.reason) for _, _, ends in self.reported for number, error in ends]


async def _turns() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@asynccontextmanager
async def _rig() -> AsyncIterator[Rig]:
    log, wakes = Log(), Wakes()
    ends = Ends(cast("Channels", wakes))
    many = ProduceMany(Produce(cast("AppendLog", log), WIRE), cast("AppendLog", log), ends)
    reported: list[Any] = []

    async def report(asked: Sequence[Any], outcomes: Sequence[Any], ended: Sequence[Any]) -> None:
        reported.append(([append_id for _, append_id, _ in asked], list(outcomes), list(ended)))

    with many.open() as call:
        run = asyncio.create_task(call.run(report))
        try:
            yield Rig(log, wakes, many, call, reported, run)
        finally:
            run.cancel()
            await asyncio.wait((run,))
    assert many.idle
    assert not wakes.listeners, "it still listens"


async def test_what_comes_while_a_group_is_stored_goes_together() -> None:
    async with _rig() as rig:
        rig.call.start(1, NAME, A)
        rig.take(1, request(1, "a"))
        await _turns()
        for first in (2, 3, 4):
            rig.take(1, request(first, "b"))
        await _turns()
        assert [len(group) for group in rig.log.groups] == [1]
        rig.log.go.set()
        await _turns()
        assert [len(group) for group in rig.log.groups] == [1, 3]
        assert [ids for ids, _, _ in rig.reported] == [[1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("count", "size"), [(MAX_OUTSTANDING_APPENDS, 1), (2, MAX_OUTSTANDING_BYTES // 2)], ids=["appends", "bytes"]
)
async def test_the_window_closes_until_enough_is_reported(count: int, size: int) -> None:
    async with _rig() as rig:
        rig.call.start(1, NAME, A)
        rig.take(1, *(Append(i + 1, 1, None, A, b"x" * size) for i in range(count - 1)))
        async with asyncio.timeout(1):
            await rig.call.room()
        rig.take(1, Append(count, 1, None, A, b"x" * size))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await rig.call.room()
        rig.log.go.set()
        async with asyncio.timeout(5):
            await rig.call.room()
        assert rig.reported


async def test_an_append_that_can_not_be_made_is_answered_in_its_place() -> None:
    async with _rig() as rig:
        rig.log.go.set()
        rig.call.start(1, NAME, A)
        wrong = InvalidField("tokens", "is empty")
        writer = rig.call.writers[1]
        rig.call.take(
            [(writer, 1, request(1, "a")), (writer, 2, wrong), (None, 3, wrong), (writer, 4, request(2, "b"))], 2
        )
        await _turns()
        (ids, answers, _), *_ = rig.reported
        assert ids == [1, 2, 3, 4]
        assert [answers[1], answers[2]] == [wrong, wrong]
        assert [answers[0].last_sequence, answers[3].last_sequence] == [1, 2]


async def test_nothing_that_can_be_stored_needs_no_redis() -> None:
    async with _rig() as rig:
        rig.call.take([(None, 1, InvalidField("writer", "is not in use"))], 0)
        await _turns()
        assert rig.reported
        assert not rig.log.groups


async def test_a_number_in_use_can_not_be_taken() -> None:
    async with _rig() as rig:
        rig.call.start(1, NAME, A)
        with pytest.raises(InvalidField, match="1 is in use"):
            rig.call.start(1, StreamName("other", "m"), A)
        with pytest.raises(InvalidField, match="1 is in use"):
            rig.call.refuse(1, InvalidField("stream", "is wrong"))
        rig.call.stop(1)
        rig.call.start(1, StreamName("other", "m"), A)
        rig.call.stop(2)


async def test_there_is_a_limit_to_writers() -> None:
    async with _rig() as rig:
        for number in range(MAX_WRITERS):
            rig.call.start(number, NAME, A)
        with pytest.raises(LimitExceeded):
            rig.call.start(MAX_WRITERS, NAME, A)


async def test_a_wrong_start_is_told_once_unless_it_was_stopped_before() -> None:
    async with _rig() as rig:
        rig.call.refuse(1, InvalidField("stream", "is wrong"))
        rig.call.refuse(2, InvalidField("stream", "is wrong"))
        rig.call.stop(2)
        await _turns()
        assert rig.ends == [(1, "INVALID_FIELD")]


async def test_ends_are_told_while_a_group_is_stored_and_not_to_those_who_stopped() -> None:
    async with _rig() as rig:
        for number in (1, 2):
            rig.call.start(number, NAME, A)
        stream = KEYS.stream(NAME)
        rig.wakes.listeners[stream.ends](b"fenced %s 4 b" % stream.open_member.encode())
        rig.wakes.listeners[stream.ends](b"completed %s cancelled cancel" % stream.open_member.encode())
        rig.call.stop(2)
        await _turns()
        assert rig.ends == [(1, "FENCED")], "only the first of what ended it"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"completed %s cancelled cancel", [(1, "COMPLETED"), (2, "COMPLETED")]),
        (b"fenced %s 4 b", [(1, "FENCED"), (2, "FENCED")]),
        (b"fenced %s 4 a", [(1, "FENCED")]),
        (b"fenced %s 3 a b", [(1, "FENCED")]),
        (b"fenced %s 3 ", [(1, "FENCED")]),
        (b"fenced %s 3 a", []),
        (b"fenced other%s 9 x", []),
    ],
)
async def test_whom_an_end_concerns(message: bytes, told: list[tuple[int, str]]) -> None:
    async with _rig() as rig:
        rig.call.start(1, NAME, A)  # Epoch 3, id "a".
        rig.call.start(2, NAME, NEWER)  # Epoch 4, id "a".
        stream = KEYS.stream(NAME)
        rig.wakes.listeners[stream.ends](None)
        rig.wakes.listeners[stream.ends](message % stream.open_member.encode())
        await _turns()
        assert rig.ends == told


async def test_it_listens_to_a_partition_as_long_as_it_has_writers_there() -> None:
    async with _rig() as rig:
        names = [StreamName(str(i), "m") for i in range(20)]
        for number, name in enumerate(names):
            rig.call.start(number, name, A)
        assert set(rig.wakes.listeners) == {KEYS.stream(name).ends for name in names}
        for number in range(len(names) - 1):
            rig.call.stop(number)
        assert set(rig.wakes.listeners) == {KEYS.stream(names[-1]).ends}


async def test_finishing_reports_what_was_taken_first() -> None:
    async with _rig() as rig:
        rig.call.start(1, NAME, A)
        rig.take(1, request(1, "a"))
        await _turns()
        rig.take(1, request(2, "b"))
        rig.many.drain()
        await _turns()
        assert not rig.run.done()
        rig.log.go.set()
        with pytest.raises(Draining):
            async with asyncio.timeout(5):
                await rig.run
        assert list(rig.answers) == [1, 2]


async def test_an_idle_call_finishes_at_once() -> None:
    async with _rig() as rig:
        await _turns()
        rig.call.finish()
        rig.call.finish(Draining())
        async with asyncio.timeout(5):
            await rig.run


async def test_what_overlaps_is_sliced_and_what_follows_comes_behind_it() -> None:
    """Of three writers one overlaps twice: the others' answers stay, also a gap that has nothing to do with it."""
    last = {A: 2, NEWER: 9, Producer(7, ""): 0}

    def answer(item: Item) -> AppendOutcome | Exception:
        _, asked = item
        if asked.first > last[asked.producer] + 1:
            return SequenceGap(last[asked.producer] + 1, asked.first)
        end = asked.first + asked.records - 1
        if asked.first <= last[asked.producer] < end:
            overlap = Overlap(last[asked.producer])
            last[asked.producer] += asked.first == 1  # Meanwhile a rival retry stores one more.
            return overlap
        last[asked.producer] = max(last[asked.producer], end)
        return _stored(item)

    async with _rig() as rig:
        rig.log.answer = answer
        rig.log.go.set()
        rig.call.start(1, NAME, A)
        rig.call.start(2, NAME, NEWER)
        rig.call.start(3, NAME, Producer(7, ""))
        writers = rig.call.writers
        rig.call.take(
            [
                (writers[1], 1, request(1, "abcd")),
                (writers[2], 2, request(20, "x", by=NEWER)),
                (writers[1], 3, request(5, "e")),
                (writers[3], 4, request(1, "x", by=Producer(7, ""))),
                (writers[1], 5, request(6, "f")),
                (writers[1], 6, request(9, "?")),
            ],
            9,
        )
        await _turns()
        answers = rig.answers
        assert [answers[i].last_sequence for i in (1, 3, 4, 5)] == [4, 5, 1, 6]
        assert isinstance(answers[2], SequenceGap)
        assert isinstance(answers[6], SequenceGap)
        assert answers[6].metadata["expected"] == "7"
        firsts = [[asked.first for asked in group] for group in rig.log.groups]
        assert firsts == [[1, 20, 5, 1, 6, 9], [3, 5, 6, 9], [4, 5, 6, 9]]


async def test_errors_are_told_apart() -> None:
    async with _rig() as rig:
        errors = {1: Fenced(9), 2: RuntimeError("a defect")}
        rig.log.answer = lambda item: errors[item[1].first]
        rig.log.go.set()
        rig.call.start(1, NAME, A)
        rig.take(1, request(1, "a"), request(2, "b"))
        await _turns()
        assert rig.answers == errors
