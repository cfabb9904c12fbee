"""The shared append call between its writers and a bridge: what is in a message when it goes."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TypeAlias

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbridge.client import produce_call
from llmbridge.client.appender import Appender
from llmbridge.client.outbox import Outbox, OutboxLimits, encoded
from llmbridge.client.produce_call import ProduceCall
from llmbridge.client.retry import RetryPolicy
from llmbridge.client.sender import Sender
from llmbridge.client.shared import Shared
from llmbridge.v1.bridge_service_pb2 import ProduceManyRequest, ProduceManyResponse, Receipt, WriterAppend, WriterStart

WRITERS = 3
LIMITS = OutboxLimits(unsent_tokens=4_096, unsent_bytes=1_048_576, kept_bytes=4_194_304)


class Bridge:
    """The other end of a call: takes a message when told to, and answers when told to."""

    def __init__(self, note: Callable[[ProduceManyRequest], None] = lambda _: None) -> None:
        self.messages: list[ProduceManyRequest] = []
        self._note = note
        self._taken = asyncio.Semaphore(0)
        self._responses: asyncio.Queue[object] = asyncio.Queue()
        self._unanswered: deque[WriterAppend] = deque()

    async def write(self, message: bytes) -> None:
        request = ProduceManyRequest.FromString(message)
        self.messages.append(request)
        self._note(request)
        self._unanswered.extend(request.appends)
        await self._taken.acquire()

    async def read(self) -> object:
        return await self._responses.get()

    async def done_writing(self) -> None:
        self._responses.put_nowait(grpc.aio.EOF)

    def cancel(self) -> bool:
        return False

    def take(self) -> None:
        """Let the next message be said."""
        self._taken.release()

    def answer(self) -> None:
        """Say that all is stored that has come."""
        receipts = [
            Receipt(append_id=append.append_id, last_sequence=append.first_sequence + len(append.tokens) - 1)
            for append in self._unanswered
        ]
        self._unanswered.clear()
        self._responses.put_nowait(ProduceManyResponse(receipts=receipts))


@dataclass(frozen=True)
class Write:
    """A writer writes some tokens."""

    writer: int
    count: int


@dataclass(frozen=True)
class Flush:
    """Somebody waits for all that a writer has written."""

    writer: int


class Bridges(Enum):
    """What the bridge does."""

    TAKES = auto()
    ANSWERS = auto()


Step: TypeAlias = Write | Flush | Bridges

writers = st.integers(1, WRITERS)
steps = st.lists(
    st.builds(Write, writers, st.integers(1, 4)) | st.sampled_from(Bridges) | st.builds(Flush, writers), max_size=40
)


async def settle() -> None:
    """Let all tasks do what they can do by themselves."""
    for _ in range(20):
        await asyncio.sleep(0)


class Tokens:
    """What each writer has written, and what of it has gone."""

    def __init__(self) -> None:
        self.written: defaultdict[int, list[str]] = defaultdict(list)
        self.sent: defaultdict[int, list[str]] = defaultdict(list)
        self.in_order = True
        self.left_behind: list[str] = []
        self._writers: dict[int, int] = {}

    def note(self, message: ProduceManyRequest) -> None:
        """Take a message as it goes."""
        self._writers.update({start.writer: int(start.producer_id) for start in message.starts})
        for append in message.appends:
            writer = self._writers[append.writer]
            sent = self.sent[writer]
            self.in_order = self.in_order and append.first_sequence == len(sent) + 1
            sent += [token.text for token in append.tokens]
            self.left_behind += self.written[writer][len(sent) :]

    def check(self) -> None:
        """See that each append went on where the last one of its writer ended, and carried all that there was."""
        assert self.in_order
        assert self.left_behind == []
        assert all(self.sent[writer] == self.written[writer][: len(self.sent[writer])] for writer in self.sent)


async def flush(sender: Sender, box: Outbox) -> None:
    through = box.accepted_through
    await sender.flush()
    assert box.stored_through >= through


async def run(history: Sequence[Step], linger: float) -> None:
    tokens = Tokens()
    bridge = Bridge(tokens.note)
    shared = Shared(lambda: ProduceCall(lambda: bridge, linger), "append")  # type: ignore[arg-type,return-value]
    boxes = {number: Outbox(1, LIMITS) for number in range(1, WRITERS + 1)}
    senders = {}
    for number, box in boxes.items():
        start = WriterStart(producer_id=str(number))
        senders[number] = Sender(Appender(shared, RetryPolicy(), start, lambda _: None), box, 0.0, lambda: None)
    sending = [asyncio.create_task(sender.run()) for sender in senders.values()]
    flushing = []
    for step in history:
        match step:
            case Write(writer, count):
                words = [f"{len(tokens.written[writer]) + number}" for number in range(count)]
                tokens.written[writer] += words
                boxes[writer].accept([encoded(word, 0) for word in words], completing=False)
                senders[writer].note_accepted()
            case Flush(writer):
                flushing.append(asyncio.create_task(flush(senders[writer], boxes[writer])))
            case Bridges.TAKES:
                bridge.take()
            case Bridges.ANSWERS:
                bridge.answer()
        await settle()
        tokens.check()
    flushing += [asyncio.create_task(flush(sender, boxes[number])) for number, sender in senders.items()]
    while not all(task.done() for task in flushing):
        bridge.take()
        bridge.answer()
        await asyncio.sleep(linger)
        tokens.check()
    await asyncio.gather(*flushing)
    assert tokens.sent == tokens.written
    assert {number: box.stored_through for number, box in boxes.items()} == {
        number: len(tokens.written[number]) for number in boxes
    }
    for task in sending:
        task.cancel()
    await asyncio.wait(sending)
    # The writers' farewells.
    bridge.take()
    await shared.close()


@pytest.mark.parametrize("linger", [0.0, 0.001])
def test_an_append_carries_all_that_its_writer_has_when_it_goes(linger: float) -> None:
    with asyncio.Runner() as runner:

        @settings(max_examples=150, deadline=None)
        @given(steps)
        def check(history: list[Step]) -> None:
            runner.run(asyncio.wait_for(run(history, linger), 30))

        check()


async def test_what_waits_for_its_message_is_not_formed() -> None:
    """A message that has no room for an append leaves it as it is: only the one that was looked at is fixed."""
    formed: list[str] = []

    def form(name: str) -> bytes:
        if name not in formed:
            formed.append(name)
        return encoded("x" * (produce_call.MAX_MESSAGE_BYTES * 2 // 3), 0)

    bridge = Bridge()
    call = ProduceCall(lambda: bridge, 0.0)  # type: ignore[arg-type,return-value]
    seats = [call.take_seat(WriterStart().SerializeToString(), lambda _: None) for _ in range(4)]
    appends = [call.append(seat, partial(form, name)) for seat, name in zip(seats, "abcd", strict=True)]
    running = asyncio.create_task(call.run())
    await settle()
    assert (len(bridge.messages), formed) == (1, ["a", "b"])
    appends[1].outcome.cancel()
    bridge.take()
    await settle()
    assert [append.writer for message in bridge.messages for append in message.appends] == [1, 3]
    assert [append.sent for append in appends] == [True, False, True, False]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
