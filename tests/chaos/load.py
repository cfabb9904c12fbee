"""Hundreds of streams through the real client: paced writers, and readers that come early, late, again and elsewhere.

Uses the client's public face only. Notes everything in ledgers and has each stream judged as soon as it is over, so
that a long run needs no more memory than a short one.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from llmbridge.client import Client, ClientError, FinishReason, StreamNotFound, Unavailable
from tests.chaos.ledger import ReaderLedger, StreamLedger
from tests.chaos.verdict import Findings, judge

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
    """Writes and reads until it is told that it is enough. `clients` are used at random, the first for all writers."""

    def __init__(self, clients: Sequence[Client], shape: Shape, dice: random.Random, losses: Callable[[], int]) -> None:
        self.findings = Findings()
        self.flowing = asyncio.Event()
        """Set once every place has a stream of which something is acknowledged."""
        self._clients = clients
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
        return self._clients[0]

    def any_client(self) -> Client:
        return self._dice.choice(self._clients)


class _StreamRun:
    """One stream, from its first token to its last reader's end."""

    def __init__(self, load: Load, place: int, ledger: StreamLedger) -> None:
        self._load = load
        self._place = place
        self._ledger = ledger
        self._losses_before = load.losses
        self._key = (f"session-{place}", "model", ledger.name)

    async def run(self) -> Findings:
        ledger, dice = self._ledger, self._load.dice
        early, elsewhere, late, again = (ReaderLedger(kind) for kind in ("early", "elsewhere", "late", "again"))
        ledger.readers = [early, elsewhere, late, again]
        clients = [self._load.writers_client, *(self._load.any_client() for _ in range(3))]
        writing = asyncio.create_task(self._write(), name=f"writer of {ledger.name}")
        reading = {
            asyncio.create_task(self._read(early, [clients[0]], 0.0)): early,
            asyncio.create_task(self._read(elsewhere, [clients[1]], 0.0)): elsewhere,
            asyncio.create_task(self._read(late, [clients[2]], dice.uniform(0.0, self._load.shape.latest))): late,
            asyncio.create_task(self._read(again, [clients[3], self._load.any_client()], dice.uniform(0, 0.5))): again,
        }
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
                await self._load.any_client().streams.get(*self._key)
        except StreamNotFound as error:
            for task in waiting:
                reading[task].error = _name(error)
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
                    ledger.acknowledge(writer.last_sequence)
                    if ledger.acknowledged:
                        self._load.note_flow(self._place)
                    await asyncio.sleep(shape.pace * dice.uniform(0.2, 1.8))
                if finish is not FinishReason.STOP:
                    await writer.complete(finish)
            ledger.completed = finish.name
        except ClientError as error:
            ledger.error = _name(error)
        finally:
            ledger.acknowledge(writer.last_sequence)

    async def _read(self, reader: ReaderLedger, clients: Sequence[Client], delay: float) -> None:
        """Read to the end, by several clients one after the other: each but the last leaves after some messages."""
        await asyncio.sleep(delay)
        reader.began = time.monotonic()
        cursor = ""
        try:
            for client in clients[:-1]:
                cursor = await self._read_some(client, reader, cursor, self._load.dice.randint(1, 10))
                if reader.finish:
                    return
                await asyncio.sleep(self._load.dice.uniform(0.0, 0.5))
                reader.began = time.monotonic()
            await self._read_some(clients[-1], reader, cursor, None)
        except ClientError as error:
            reader.error = _name(error)

    async def _read_some(self, client: Client, reader: ReaderLedger, cursor: str, most: int | None) -> str:
        async with client.subscribe(*self._key, after_cursor=cursor) as subscription:
            async for message in subscription:
                for i, token in enumerate(message.tokens):
                    self._ledger.receive(reader, token.text, message.first_sequence + i)
                if message.finish_reason is not None:
                    reader.finish, reader.finish_number = message.finish_reason.name, message.last_sequence
                if most is not None:
                    most -= 1
                    if most <= 0:
                        break
            return subscription.cursor


def _name(error: ClientError) -> str:
    return f"{type(error).__name__} {error.reason}".rstrip()


@asynccontextmanager
async def clients_of(addresses: Sequence[str]) -> AsyncIterator[list[Client]]:
    """A client for each address (or list of addresses), for the time of the context."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(address)) for address in addresses]
