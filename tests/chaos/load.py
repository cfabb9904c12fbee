"""Hundreds of streams through the real client: paced writers, and readers that come early, late, again and elsewhere.

Some read as pages in browsers do. Notes everything in ledgers and has each stream judged as soon as it is over, so that
a long run needs no more memory than a short one.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from llmbridge.client import Client, ClientError, FinishReason, StreamNotFound, Unavailable, Writer
from tests.chaos.ledger import ReaderLedger, StreamLedger
from tests.chaos.verdict import Findings, judge
from tests.chaos.ways import ByClient, ReadingFailed, Way, name_of

_LOOK_AGAIN_SECONDS = 0.5

_Task: TypeAlias = "asyncio.Task[None]"


@dataclass(frozen=True, slots=True)
class Shape:
    """How much, and how fast. Times in seconds."""

    at_once: int = 100
    """Streams that are written at any time; when one is over, the next takes its place."""
    batches: tuple[int, int] = (5, 25)
    """How many times a writer writes one to four tokens."""
    pace: float = 0.15
    """The mean pause between two of them."""
    latest: float = 4.0
    """How long after its stream's beginning a late reader comes at the latest."""
    patience: float = 45.0
    """Within this a stream and all its readers must be over; what is not counts as hung."""


class Load:
    """Writes and reads until it is told that it is enough.

    `clients` are used at random, the first for all writers. Each stream has four readers that begin with one of them,
    and one for each of the `pages`, by their names.
    """

    def __init__(
        self,
        clients: Sequence[ByClient],
        pages: Mapping[str, Way],
        shape: Shape,
        dice: random.Random,
        losses: Callable[[], int],
    ) -> None:
        self.findings = Findings()
        self.flowing = asyncio.Event()
        """Set once every place has a stream of which something is acknowledged."""
        self.clients = clients
        self.pages = pages
        self._shape = shape
        self._dice = dice
        self._losses = losses
        self._run_name = f"{dice.getrandbits(32):08x}"
        self._made = 0
        self._places_flowing: set[int] = set()

    async def run(self, enough: asyncio.Event) -> None:
        """Run until `enough` is set and the streams that are under way by then are over."""
        async with asyncio.TaskGroup() as group:
            for place in range(self._shape.at_once):
                group.create_task(self._fill(place, enough))

    async def _fill(self, place: int, enough: asyncio.Event) -> None:
        await asyncio.sleep(self._dice.uniform(0.0, 2 * self._shape.pace))
        while not enough.is_set():
            self._made += 1
            stream = _StreamRun(self, place, StreamLedger(f"{self._run_name}-{self._made}"))
            self.findings.add(await stream.run())

    def note_flow(self, place: int) -> None:
        if not self.flowing.is_set():
            self._places_flowing.add(place)
            if len(self._places_flowing) == self._shape.at_once:
                self.flowing.set()

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def dice(self) -> random.Random:
        return self._dice

    @property
    def losses(self) -> int:
        """How often Redis has lost data so far."""
        return self._losses()

    @property
    def writers_client(self) -> Client:
        return self.clients[0].client

    def any_client(self) -> ByClient:
        return self._dice.choice(self.clients)

    def any_page(self) -> Way:
        return self._dice.choice(list(self.pages.values()))


class _StreamRun:
    """One stream, from its first token to its last reader's end."""

    def __init__(self, load: Load, place: int, ledger: StreamLedger) -> None:
        self._load = load
        self._place = place
        self._ledger = ledger
        self._losses_before = load.losses
        self._key = (f"session-{place}", "model", ledger.name)

    async def run(self) -> Findings:
        ledger = self._ledger
        writing = asyncio.create_task(self._write(), name=f"writer of {ledger.name}")
        reading = {}
        for name, (ways, delay) in self._readers().items():
            reader = ReaderLedger(name)
            ledger.readers.append(reader)
            reading[asyncio.create_task(self._read(reader, ways, delay), name=f"{name} of {ledger.name}")] = reader
        tasks = [writing, *reading]
        try:
            await self._watch_over(writing, reading)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        # Whatever else a client raises is a finding, too, and must not end the run.
        if not writing.cancelled() and (defect := writing.exception()) is not None:
            ledger.error = repr(defect)
        for task, reader in reading.items():
            if not task.cancelled() and (defect := task.exception()) is not None:
                reader.error = repr(defect)
        self._note_exposure()
        return judge(ledger)

    def _readers(self) -> dict[str, tuple[Sequence[Way], float]]:
        """Draw who reads: by which ways, one after the other, and after how many seconds."""
        load, dice = self._load, self._load.dice
        latest = load.shape.latest
        readers: dict[str, tuple[Sequence[Way], float]] = {
            "early": ([load.clients[0]], 0.0),
            "elsewhere": ([load.any_client()], 0.0),
            "late": ([load.any_client()], dice.uniform(0.0, latest)),
            # A cursor of the API is good in a browser, too.
            "again": ([load.any_client(), dice.choice([*load.clients, *load.pages.values()])], dice.uniform(0.0, 0.5)),
        }
        for name, page in load.pages.items():
            ways = [page, load.any_page()] if dice.random() < 0.5 else [page]
            readers[name] = (ways, dice.choice((0.0, dice.uniform(0.0, latest))))
        return readers

    async def _watch_over(
        self, writing: "asyncio.Task[None]", reading: "dict[asyncio.Task[None], ReaderLedger]"
    ) -> None:
        """Wait for all of them; note who hangs, and who waits for a stream that Redis has lost as a whole."""
        deadline = time.monotonic() + self._load.shape.patience
        open_tasks: set[_Task] = {writing, *reading}
        while open_tasks:
            _, open_tasks = await asyncio.wait(open_tasks, timeout=_LOOK_AGAIN_SECONDS)
            if open_tasks and time.monotonic() >= deadline:
                self._ledger.hung = writing in open_tasks
                for task in open_tasks - {writing}:
                    reading[task].hung = True
                return
            if writing.done() and self._note_exposure():
                open_tasks -= await self._in_vain({task: reading[task] for task in open_tasks})

    def _note_exposure(self) -> bool:
        self._ledger.exposed = self._ledger.exposed or self._load.losses > self._losses_before
        return self._ledger.exposed

    async def _in_vain(self, reading: dict[_Task, ReaderLedger]) -> set[_Task]:
        """Find who waits for a stream that Redis has lost as a whole.

        A reader from the beginning waits for a stream that does not exist (yet), by contract. That it never will again
        only GetStream tells.
        """
        waiting = {task for task, reader in reading.items() if reader.began and not reader.received}
        try:
            if waiting:
                await self._load.any_client().client.streams.get(*self._key)
        except StreamNotFound as error:
            for task in waiting:
                reading[task].error = name_of(error)
            return waiting
        except Unavailable:
            pass
        return set()

    async def _write(self) -> None:
        ledger, dice, shape = self._ledger, self._load.dice, self._load.shape
        finish = FinishReason.LENGTH if dice.random() < 0.1 else FinishReason.STOP
        writer = self._load.writers_client.write(*self._key)
        try:
            async with writer:
                for _ in range(dice.randint(*shape.batches)):
                    await writer.write(*(ledger.send() for _ in range(dice.choice((1, 1, 1, 4)))))
                    self._acknowledge(writer)
                    await asyncio.sleep(shape.pace * dice.uniform(0.2, 1.8))
                if finish is not FinishReason.STOP:
                    await writer.complete(finish)
            ledger.completed = finish.name
        except ClientError as error:
            ledger.error = name_of(error)
        finally:
            # On a slow machine a short stream is acknowledged only here.
            self._acknowledge(writer)

    def _acknowledge(self, writer: Writer) -> None:
        self._ledger.acknowledge(writer.last_sequence)
        if self._ledger.acknowledged:
            self._load.note_flow(self._place)

    async def _read(self, reader: ReaderLedger, ways: Sequence[Way], delay: float) -> None:
        """Read to the end, by several ways one after the other: each but the last is left after some messages."""
        await asyncio.sleep(delay)
        place = ""
        try:
            for way in ways[:-1]:
                place = await self._read_some(way, reader, place, self._load.dice.randint(1, 10))
                if reader.finish:
                    return
                await asyncio.sleep(self._load.dice.uniform(0.0, 0.5))
            await self._read_some(ways[-1], reader, place, None)
        except ReadingFailed as error:
            reader.error = str(error)

    async def _read_some(self, way: Way, reader: ReaderLedger, place: str, most: int | None) -> str:
        reader.began = time.monotonic()
        async with aclosing(way.read(self._key, place)) as arriving:
            async for arrived in arriving:
                place = arrived.place
                for sequence, text in arrived.tokens:
                    self._ledger.receive(reader, text, sequence)
                if arrived.finish:
                    self._ledger.receive_end(reader, arrived.finish, arrived.finish_number)
                if most is not None:
                    most -= 1
                    if most <= 0:
                        break
        return place
