"""ProduceMany: the appends of many writers over one call. Knows nothing of messages.

A call has two sides. One takes what comes from the client, as long as its window is open; the other stores all that
waits together, and reports. So while one group is on its way to Redis the next one gathers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from llmbridge.errors import BridgeError, Draining, InvalidField, LimitExceeded
from llmbridge.log.appending import Appended, AppendLog
from llmbridge.log.ends import Ends, Listener
from llmbridge.log.keys import StreamKeys
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, Producer
from llmbridge.produce.append import Produce

MAX_OUTSTANDING_APPENDS = 4_096
"""A step of the largest engines; Redis takes it in about 20 ms."""

MAX_OUTSTANDING_BYTES = 8 * 1024 * 1024
"""What one call may hold in memory here, and one message more."""

MAX_WRITERS = 16_384
"""On one call. A writer takes about 2 KiB."""


class Writer:
    """One writer of a call: what all its appends have in common, or what is wrong with its start."""

    __slots__ = ("error", "listener", "number", "producer", "stream", "told")

    def __init__(self, number: int, stream: StreamKeys | None, producer: Producer, error: BridgeError | None) -> None:
        self.number = number
        self.stream = stream
        self.producer = producer
        self.error = error
        self.listener: Listener | None = None
        self.told = False
        """That it can append no more."""


Asked = tuple[Writer | None, int, Append | Exception]
"""Whose, its append_id, and what to append, or why that can't be."""

End = tuple[int, BridgeError]
"""A writer that can append no more, and why."""

Report = Callable[[Sequence[Asked], Sequence[Appended | Exception], Sequence[End]], Awaitable[None]]
"""Tells the client what became of appends, in order, and of writers."""


class ProduceCall:
    """One call. Made by ProduceMany; `run` must be running."""

    def __init__(self, produce: Produce, log: AppendLog, ends: Ends) -> None:
        self._produce = produce
        self._log = log
        self._ends = ends
        self.writers: dict[int, Writer] = {}
        """Those that have not stopped, by their number."""
        self.finished = False
        """Nothing more is taken."""
        self._error: Exception | None = None
        self._asked: list[Asked] = []
        self._asked_bytes = 0
        self._ended: list[tuple[Writer, BridgeError]] = []
        self._outstanding = 0
        self._outstanding_bytes = 0
        self._loop = asyncio.get_running_loop()
        # What `run` waits for.
        self._something: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    def start(self, number: int, name: StreamName, producer: Producer) -> None:
        """Begin a writer. Raises InvalidField for a number in use, LimitExceeded where there are too many."""
        stream = self._log.keys_of(name)
        writer = Writer(number, stream, producer, None)
        self._add(writer)
        writer.listener = self._ends.listen(stream, producer, lambda error: self._end(writer, error))

    def refuse(self, number: int, error: BridgeError) -> None:
        """Begin a writer whose start is wrong: it is told at once, and for each of its appends. Raises as `start`."""
        writer = Writer(number, None, Producer(0, ""), error)
        self._add(writer)
        self._end(writer, error)

    def take(self, asked: Sequence[Asked], size: int) -> None:
        """Queue appends of `size` bytes in all."""
        self._asked += asked
        self._asked_bytes += size
        self._outstanding += len(asked)
        self._outstanding_bytes += size
        self._wake()

    def stop(self, number: int) -> None:
        """End a writer; its number is free. One that is not in use is no error."""
        writer = self.writers.pop(number, None)
        if writer is not None:
            self._forget(writer)

    def finish(self, error: Exception | None = None) -> None:
        """Take nothing more. `run` ends when all is reported, by raising `error` if there is one."""
        if not self.finished:
            self.finished = True
            self._error = error
            self._wake()

    async def room(self) -> None:
        """Wait until the window is open."""
        while not self.is_open:
            self._room.clear()
            await self._room.wait()

    async def run(self, report: Report) -> None:
        """Store and report until finished. Raises what it was finished with, and what `report` raises."""
        while True:
            if self._asked or self._ended:
                asked, size = self._asked, self._asked_bytes
                self._asked, self._asked_bytes = [], 0
                outcomes = await self._store(asked)
                ended, self._ended = self._ended, []
                in_use = self.writers
                ends = [(writer.number, error) for writer, error in ended if in_use.get(writer.number) is writer]
                await report(asked, outcomes, ends)
                self._settled(len(asked) + len(ended), size)
            elif self.finished:
                break
            else:
                self._something = self._loop.create_future()
                await self._something
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Let go of everything."""
        for writer in self.writers.values():
            self._forget(writer)
        self.writers.clear()

    async def _store(self, asked: Sequence[Asked]) -> list[Appended | Exception]:
        items = [
            (writer.stream, request)
            for writer, _, request in asked
            if type(request) is Append and writer is not None and writer.stream is not None
        ]
        stored = await self._produce.append_all(items, source=self) if items else []
        if len(stored) == len(asked):
            return stored
        rest = iter(stored)
        return [request if isinstance(request, Exception) else next(rest) for _, _, request in asked]

    def _wake(self) -> None:
        if self._something is not None and not self._something.done():
            self._something.set_result(None)

    @property
    def is_open(self) -> bool:
        """Whether the window is: else `room` waits for that."""
        return self._outstanding < MAX_OUTSTANDING_APPENDS and self._outstanding_bytes < MAX_OUTSTANDING_BYTES

    def _settled(self, count: int, size: int) -> None:
        self._outstanding -= count
        self._outstanding_bytes -= size
        if self.is_open:
            self._room.set()

    def _add(self, writer: Writer) -> None:
        if writer.number in self.writers:
            raise InvalidField("starts.writer", f"{writer.number} is in use: take another one, or stop that first")
        if len(self.writers) >= MAX_WRITERS:
            raise LimitExceeded("writers of a call", MAX_WRITERS, MAX_WRITERS + 1, "open another call")
        self.writers[writer.number] = writer

    def _end(self, writer: Writer, error: BridgeError) -> None:
        if not writer.told:
            writer.told = True
            self._ended.append((writer, error))
            self._outstanding += 1
            self._wake()

    def _forget(self, writer: Writer) -> None:
        if writer.listener is not None:
            self._ends.forget(writer.listener)


class ProduceMany:
    """Opens calls, and ends them when the bridge drains."""

    def __init__(self, produce: Produce, log: AppendLog, ends: Ends) -> None:
        self._produce = produce
        self._log = log
        self._ends = ends
        self._calls: set[ProduceCall] = set()

    @property
    def idle(self) -> bool:
        """Whether no call is open."""
        return not self._calls

    @contextmanager
    def open(self) -> Iterator[ProduceCall]:
        """Make a call, for as long as the context lasts."""
        call = ProduceCall(self._produce, self._log, self._ends)
        self._calls.add(call)
        try:
            yield call
        finally:
            self._calls.discard(call)
            call.close()

    def drain(self) -> None:
        """End the calls with Draining, each as soon as everything that it took is reported."""
        for call in self._calls:
            call.finish(Draining())
