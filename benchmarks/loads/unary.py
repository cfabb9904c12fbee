"""One producer, one call in flight, no readers: what a Produce call costs by itself."""

from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import load_process
from benchmarks.loads.load import Load, Target
from benchmarks.measure import observe, produce_latency
from benchmarks.rounds import ProduceRound, ReadRound
from benchmarks.servers import Service

DEADLINE_S = 60.0
WARM_UP_CALLS = 300


async def _run(per_call: int, service: Service, quick: bool) -> Figures:
    calls = 500 if quick else 2_000
    async with load_process(*service.producers) as producer:
        await producer.run(ProduceRound(("warm",), WARM_UP_CALLS * per_call, DEADLINE_S, per_call))
        tokens = calls * per_call
        seen = await observe(service, (producer, ProduceRound(("unary",), tokens, DEADLINE_S, per_call)))
        await producer.run(ReadRound(("unary",), tokens, DEADLINE_S))
    return seen.cost(tokens) | produce_latency(seen.results[0])


LOADS = tuple(
    Load(
        row=f"unary-{per_call}",
        title=f"unary Produce, {per_call} token{'s' * (per_call > 1)} a call, one in flight, no readers",
        unit="token",
        run=partial(_run, per_call),
        targets=(Target(Metric.CPU_US, times=1.0),),
    )
    for per_call in (1, 16)
)
