"""Many streams with one reader each: flat out, and at the pace of models that serve many people."""

from dataclasses import dataclass
from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import load_process
from benchmarks.loads.load import ALL_SERVICES, Load, Target
from benchmarks.measure import delivery_latency, observe, produce_latency
from benchmarks.rounds import ProduceRound, ReadRound
from benchmarks.servers import Kind, Service, Speech

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Shape:
    streams: int
    tokens: int
    """For each stream."""
    tokens_quick: int
    tokens_warm_up: int
    interval_s: float = 0.0
    """0: each stream's producer sends the next token when the last is answered or, unawaited, handed over."""
    awaited: bool = True


async def _run(shape: _Shape, service: Service, quick: bool) -> Figures:
    async with load_process(*service.readers) as readers, load_process(*service.producers) as producers:
        for name, tokens in (("w", shape.tokens_warm_up), ("m", shape.tokens_quick if quick else shape.tokens)):
            streams = tuple(f"{name}{number}" for number in range(shape.streams))
            producing = ProduceRound(streams, tokens, DEADLINE_S, interval_s=shape.interval_s, awaited=shape.awaited)
            seen = await observe(service, (readers, ReadRound(streams, tokens, DEADLINE_S)), (producers, producing))
    read, produced = seen.results
    latency = produce_latency(produced) if shape.awaited else {}
    return seen.cost(produced.tokens) | latency | delivery_latency(read)


def paced(streams: int, *, tokens: int) -> Load:
    """Streams at 20 tokens/s, each token by a call of its own."""
    shape = _Shape(streams, tokens, tokens_quick=tokens, tokens_warm_up=20, interval_s=1 / 20)
    return Load(
        row=f"paced-{streams}", title=f"{streams} streams at 20 tokens/s", unit="token", run=partial(_run, shape)
    )


_FLAT = _Shape(streams=64, tokens=200, tokens_quick=30, tokens_warm_up=20)
_FLAT_UNAWAITED = _Shape(streams=64, tokens=2_000, tokens_quick=300, tokens_warm_up=100, awaited=False)
_PACED = _Shape(streams=100, tokens=100, tokens_quick=40, tokens_warm_up=10, interval_s=1 / 20)
_PACED_UNAWAITED = _Shape(streams=100, tokens=100, tokens_quick=40, tokens_warm_up=10, interval_s=1 / 20, awaited=False)

LOADS = (
    Load(
        row="flat-64",
        title="64 streams flat out, each token awaited, one reader each",
        unit="token",
        run=partial(_run, _FLAT),
        targets=(Target(Metric.CPU_US, times=1.0),),
        services=ALL_SERVICES,
    ),
    Load(
        row="flat-64-client-awaited",
        title="the same by the client library",
        unit="token",
        run=partial(_run, _FLAT),
        targets=(Target(Metric.CPU_US, at_most=10.0), Target(Metric.CPU_US, times=1.0, of=Kind.NATS)),
        services=(Kind.BRIDGE, Kind.NATS),
        reads=Speech.CLIENT,
        writes=Speech.CLIENT,
    ),
    Load(
        row="flat-64-client",
        title="the same, no token awaited: the client library batches",
        unit="token",
        run=partial(_run, _FLAT_UNAWAITED),
        targets=(Target(Metric.CPU_US, at_most=2.0),),
        services=(Kind.BRIDGE, Kind.NATS),
        reads=Speech.CLIENT,
        writes=Speech.CLIENT,
    ),
    Load(
        row="paced-100",
        title="100 streams at 20 tokens/s, one reader each",
        unit="token",
        run=partial(_run, _PACED),
        targets=(Target(Metric.CPU_US, times=1.3), Target(Metric.DELIVERY_P99_MS, at_most=10.0)),
        services=ALL_SERVICES,
    ),
    Load(
        row="paced-100-client",
        title="the same by the client library, with its default linger",
        unit="token",
        run=partial(_run, _PACED_UNAWAITED),
        targets=(Target(Metric.CPU_US, at_most=45.0), Target(Metric.DELIVERY_P99_MS, at_most=10.0)),
        services=(Kind.BRIDGE, Kind.NATS),
        reads=Speech.CLIENT,
        writes=Speech.CLIENT,
    ),
    Load(
        row="paced-100-sse",
        title="100 streams at 20 tokens/s by the client library, each awaited, one reader each by Server-Sent Events",
        unit="token",
        run=partial(_run, _PACED),
        targets=(Target(Metric.CPU_US, times=1.0), Target(Metric.DELIVERY_P99_MS, times=1.0)),
        reads=Speech.SSE,
        writes=Speech.CLIENT,
    ),
)
