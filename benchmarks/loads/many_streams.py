"""Many streams with one reader each: flat out, and at the pace of models that serve many people."""

from dataclasses import dataclass
from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import load_process
from benchmarks.loads.load import Load, Target
from benchmarks.measure import delivery_latency, observe, produce_latency
from benchmarks.rounds import ProduceRound, ReadRound
from benchmarks.servers import Service

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Shape:
    streams: int
    tokens: int
    """For each stream."""
    tokens_quick: int
    tokens_warm_up: int
    interval_s: float = 0.0
    """0: each stream's producer sends the next token when the last is answered."""


async def _run(shape: _Shape, service: Service, quick: bool) -> Figures:
    async with (
        load_process(*service.readers, channels=1) as readers,
        load_process(service.kind, service.target, channels=1) as producers,
    ):
        for name, tokens in (("w", shape.tokens_warm_up), ("m", shape.tokens_quick if quick else shape.tokens)):
            streams = tuple(f"{name}{number}" for number in range(shape.streams))
            seen = await observe(
                service,
                (readers, ReadRound(streams, tokens, DEADLINE_S)),
                (producers, ProduceRound(streams, tokens, DEADLINE_S, interval_s=shape.interval_s)),
            )
    read, produced = seen.results
    return seen.cost(produced.tokens) | produce_latency(produced) | delivery_latency(read)


LOADS = (
    Load(
        row="flat-64",
        title="64 streams flat out, each token awaited, one reader each",
        unit="token",
        run=partial(_run, _Shape(streams=64, tokens=200, tokens_quick=30, tokens_warm_up=20)),
        targets=(Target(Metric.CPU_US, of_baseline=1.0),),
    ),
    Load(
        row="paced-100",
        title="100 streams at 20 tokens/s, one reader each",
        unit="token",
        run=partial(_run, _Shape(streams=100, tokens=200, tokens_quick=40, tokens_warm_up=20, interval_s=1 / 20)),
        targets=(Target(Metric.CPU_US, of_baseline=1.3), Target(Metric.DELIVERY_P99_MS, at_most=10.0)),
    ),
    Load(
        row="paced-100-sse",
        title="100 streams at 20 tokens/s, one reader each by Server-Sent Events",
        unit="token",
        run=partial(_run, _Shape(streams=100, tokens=200, tokens_quick=40, tokens_warm_up=20, interval_s=1 / 20)),
        targets=(Target(Metric.CPU_US, of_baseline=1.0), Target(Metric.DELIVERY_P99_MS, of_baseline=1.0)),
        http=True,
    ),
)
