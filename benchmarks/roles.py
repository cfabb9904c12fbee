"""How a load process carries out a round: the producers and readers themselves. Knows no transport and no load."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from benchmarks.rounds import ProduceRound, ReadRound, ReplayRound, Round, RoundResult
from benchmarks.tokens import DeliveryCheck, now, token_text
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
            case ReadRound():
                return await _read(spec, transport, gate)
            case ReplayRound():
                return await _replay(spec, transport, gate)


async def _produce(spec: ProduceRound, transport: Transport, gate: Gate) -> RoundResult:
    latencies: list[int] = []
    # A fixed seed: the same offsets for both services and in every repetition.
    offsets = random.Random(1)

    async def feed(stream: str, start: int) -> None:
        end = spec.first_sequence + spec.tokens
        for call, sequence in enumerate(range(spec.first_sequence, end, spec.per_call)):
            wait = (start + call * spec.interval_s * _NS_PER_S - now()) / _NS_PER_S
            if wait > 0:
                await asyncio.sleep(wait)
            after = min(sequence + spec.per_call, end)
            sent = now()
            texts = [token_text(stream, number, sent) for number in range(sequence, after)]
            await transport.produce(stream, sequence, texts, final=spec.final and after == end)
            latencies.append((now() - sent) // _NS_PER_US)

    await gate()
    started = now()
    async with asyncio.TaskGroup() as group:
        for stream in spec.streams:
            # Spread over one interval, so that the streams do not send at the same moments.
            group.create_task(feed(stream, started + int(offsets.random() * spec.interval_s * _NS_PER_S)))
    return RoundResult(started, now(), spec.tokens * len(spec.streams), len(latencies), tuple(latencies))


async def _read(spec: ReadRound, transport: Transport, gate: Gate) -> RoundResult:
    latencies: list[int] = []
    messages = 0
    to_attach = len(spec.streams)
    all_attached = asyncio.Event()

    def attached() -> None:
        nonlocal to_attach
        to_attach -= 1
        if not to_attach:
            all_attached.set()

    async def follow(stream: str) -> None:
        nonlocal messages
        check = DeliveryCheck(stream, spec.tokens)
        async with aclosing(transport.read(stream, spec.reading, attached)) as batches:
            async for texts in batches:
                received = now()
                messages += 1
                latencies.extend([(received - check.take(text)) // _NS_PER_US for text in texts])
        check.end()

    async with asyncio.TaskGroup() as group:
        for stream in spec.streams:
            group.create_task(follow(stream))
        await all_attached.wait()
        await gate()
        started = now()
    return RoundResult(started, now(), len(latencies), messages, tuple(latencies))


async def _replay(spec: ReplayRound, transport: Transport, gate: Gate) -> RoundResult:
    messages = 0
    await gate()
    started = now()
    for _ in range(spec.times):
        check = DeliveryCheck(spec.stream, spec.tokens)
        async with aclosing(transport.read(spec.stream, spec.reading, lambda: None)) as batches:
            async for texts in batches:
                messages += 1
                for text in texts:
                    check.take(text)
        check.end()
    return RoundResult(started, now(), spec.tokens * spec.times, messages, ())
