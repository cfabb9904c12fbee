"""Many readers with nothing to read: what each costs in memory and Redis connections.

Each reads a stream of its own that holds one token and is open. Afterwards every stream gets its last token, which
every reader must receive, so that no dead connection passes for a cheap one.
"""

import asyncio

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import LoadProcess, load_process
from benchmarks.loads.load import ALL_SERVICES, Load, Target
from benchmarks.rounds import ProduceRound, ReadRound
from benchmarks.servers import Kind, Service, Speech

DEADLINE_S = 60.0
READERS = 500
READERS_WARM_UP = 20
AT_ONCE = 20
"""Streams produced to together. A burst would leave the service with free memory, which readers would reuse unseen."""
SETTLE_S = 2.0
SETTLE_QUICK_S = 1.0


async def _produce(producer: LoadProcess, streams: tuple[str, ...], sequence: int, *, final: bool) -> None:
    for start in range(0, len(streams), AT_ONCE):
        block = streams[start : start + AT_ONCE]
        await producer.run(ProduceRound(block, 1, DEADLINE_S, first_sequence=sequence, final=final))


async def _hold(service: Service, readers: LoadProcess, producer: LoadProcess, count: int, settle_s: float) -> Figures:
    streams = tuple(f"idle-{count}-{number}" for number in range(count))
    await _produce(producer, streams, 1, final=False)
    without_kib = service.resident_kib()
    await readers.prepare(ReadRound(streams, 2, DEADLINE_S))
    await asyncio.sleep(settle_s)
    with_kib = service.resident_kib()
    connections = await service.redis_connections()
    before = service.cpu()
    await asyncio.sleep(settle_s)
    after = service.cpu()
    await readers.start()
    await _produce(producer, streams, 2, final=True)
    await readers.result()
    used_s = after.service_s - before.service_s + after.redis_s - before.redis_s
    return {
        Metric.READER_KIB: (with_kib - without_kib) / count,
        Metric.IDLE_CPU_PERCENT: used_s / settle_s * 100,
        **({} if connections is None else {Metric.REDIS_CONNECTIONS: connections}),
    }


async def _run(service: Service, quick: bool) -> Figures:
    settle_s = SETTLE_QUICK_S if quick else SETTLE_S
    async with (
        load_process(*service.readers) as readers,
        load_process(*service.producers) as producer,
    ):
        await _hold(service, readers, producer, READERS_WARM_UP, settle_s=SETTLE_QUICK_S)
        return await _hold(service, readers, producer, READERS, settle_s)


LOADS = (
    Load(
        row=f"idle-{READERS}",
        title=f"{READERS} idle readers of {READERS} streams, on one channel",
        unit="reader",
        run=_run,
        targets=(
            Target(Metric.READER_KIB, at_most=40.0),
            Target(Metric.READER_KIB, times=1.0),
            Target(Metric.REDIS_CONNECTIONS, at_most=4),
        ),
        services=ALL_SERVICES,
    ),
    Load(
        row=f"idle-{READERS}-many",
        title=f"{READERS} idle readers of {READERS} streams, over one SubscribeMany call",
        unit="reader",
        run=_run,
        targets=(Target(Metric.READER_KIB, at_most=40.0), Target(Metric.REDIS_CONNECTIONS, at_most=4)),
        services=(Kind.BRIDGE,),
        reads=Speech.MANY,
    ),
    Load(
        row=f"idle-{READERS}-sse",
        title=f"{READERS} idle readers of {READERS} streams by Server-Sent Events",
        unit="reader",
        run=_run,
        targets=(Target(Metric.READER_KIB, times=1.0), Target(Metric.REDIS_CONNECTIONS, at_most=4)),
        reads=Speech.SSE,
    ),
)
