"""How a load process carries out a round: the producers and readers themselves. Knows no transport and no load."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.rounds import ProduceRound, ReadRound, ReplayRound, Round, RoundResult, StepRound
from benchmarks.tokens import DeliveryCheck, MonotonicNs, now, token_text
from benchmarks.transport import Transport

Gate = Callable[[], Awaitable[None]]
"""Says that the round is prepared and returns when it may start."""

_NS_PER_S = 1_000_000_000
_NS_PER_US = 1_000


async def carry_out(spec: Round, transport: Transport, gate: Gate) -> RoundResult:
    """Carries out a round. Raises DeliveryError for a wrong token, TimeoutError past the deadline."""
    async with asyncio.timeout(spec.deadline_s):
        match spec:
            case ProduceRound():
                return await _produce(spec, transport, gate)
            case StepRound():
                return await _step(spec, transport, gate)
            case ReadRound():
                return await _read(spec, transport, gate)
            case ReplayRound():
                return await _replay(spec, transport, gate)


async def _sleep_until(moment: float) -> None:
    # Also where it is past: an unawaited call would otherwise leave no room for the other streams.
    await asyncio.sleep(max(0.0, (moment - now()) / _NS_PER_S))


async def _produce(spec: ProduceRound, transport: Transport, gate: Gate) -> RoundResult:
    latencies: list[int] = []
    # A fixed seed: the same offsets for all services and in every repetition.
    offsets = random.Random(1)

    async def feed(stream: str, start: int) -> None:
        end = spec.first_sequence + spec.tokens
        for call, sequence in enumerate(range(spec.first_sequence, end, spec.per_call)):
            if spec.interval_s or not spec.awaited:
                await _sleep_until(start + call * spec.interval_s * _NS_PER_S)
            after = min(sequence + spec.per_call, end)
            sent = now()
            texts = [token_text(stream, number, sent) for number in range(sequence, after)]
            final = spec.final and after == end
            await transport.produce(stream, sequence, texts, final=final, awaited=spec.awaited)
            latencies.append((now() - sent) // _NS_PER_US)

    await gate()
    started = now()
    async with asyncio.TaskGroup() as group:
        for stream in spec.streams:
            # Spread over one interval, so that the streams do not send at the same moments.
            group.create_task(feed(stream, started + int(offsets.random() * spec.interval_s * _NS_PER_S)))
    return RoundResult(started, now(), spec.tokens * len(spec.streams), len(latencies), tuple(latencies))


async def _step(spec: StepRound, transport: Transport, gate: Gate) -> RoundResult:
    latencies: list[int] = []
    behind = 0

    async def settle(stored: Awaitable[None], sent: MonotonicNs) -> None:
        await stored
        latencies.append((now() - sent) // _NS_PER_US)

    await gate()
    started = now()
    async with asyncio.TaskGroup() as group:
        for step in range(spec.steps):
            due = started + int(step * spec.interval_s * _NS_PER_S)
            await _sleep_until(due)
            sent = now()
            behind = max(behind, sent - due)
            sequence = spec.first_sequence + step
            texts = {stream: token_text(stream, sequence, sent) for stream in spec.streams}
            stored = await transport.step(sequence, texts, final=spec.final and step == spec.steps - 1)
            group.create_task(settle(stored, sent))
    tokens = spec.steps * len(spec.streams)
    return RoundResult(started, now(), tokens, spec.steps, tuple(latencies), behind // _NS_PER_US)


class _Reader:
    """Checks what one reader gets, and notes how old it is."""

    def __init__(
        self, stream: str, tokens: int, on_attached: Callable[[], None], latencies: list[int], timed: slice
    ) -> None:
        self._check = DeliveryCheck(stream, tokens)
        self._latencies = latencies
        self._timed = timed
        self.attached = on_attached
        self.messages = 0
        self.tokens = 0
        self.end = self._check.end

    def take(self, texts: Sequence[str]) -> None:
        received = now()
        self.messages += 1
        take = self._check.take
        ages = [(received - take(text)) // _NS_PER_US for text in texts]
        first, last = (max(0, bound - self.tokens) for bound in (self._timed.start, self._timed.stop))
        self._latencies.extend(ages[first:last])
        self.tokens += len(texts)


async def _read(spec: ReadRound, transport: Transport, gate: Gate) -> RoundResult:
    latencies: list[int] = []
    to_attach = len(spec.streams)
    all_attached = asyncio.Event()

    def attached() -> None:
        nonlocal to_attach
        to_attach -= 1
        if not to_attach:
            all_attached.set()

    timed = slice(spec.first_timed - 1, spec.tokens if spec.last_timed is None else spec.last_timed)
    readers = [_Reader(stream, spec.tokens, attached, latencies, timed) for stream in spec.streams]

    async def follow(stream: str, reader: _Reader) -> None:
        await transport.read(stream, spec.reading, reader)
        reader.end()

    async with asyncio.TaskGroup() as group:
        for stream, reader in zip(spec.streams, readers, strict=True):
            group.create_task(follow(stream, reader))
        await all_attached.wait()
        await gate()
        started = now()
    tokens = sum(reader.tokens for reader in readers)
    messages = sum(reader.messages for reader in readers)
    return RoundResult(started, now(), tokens, messages, tuple(latencies))


async def _replay(spec: ReplayRound, transport: Transport, gate: Gate) -> RoundResult:
    messages = 0
    await gate()
    started = now()
    for _ in range(spec.times):
        reader = _Reader(spec.stream, spec.tokens, lambda: None, [], slice(0, 0))
        await transport.read(spec.stream, spec.reading, reader)
        reader.end()
        messages += reader.messages
    return RoundResult(started, now(), spec.tokens * spec.times, messages, ())
