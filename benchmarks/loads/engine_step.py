"""What an inference engine does: at every step one token for each of the responses it works at, each with a reader.

To the bridge a step is a message or a few on one ProduceMany call, and all readers share one SubscribeMany call. To
NATS it is a publication each on one connection, the acknowledgements gathered; to the hand-rolled service a POST each.

Measured are steps in the midst of the streams: where many streams get few tokens each, the cost of beginning and ending
them would hide that of the tokens.
"""

import asyncio
from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import load_process
from benchmarks.loads.load import ALL_SERVICES, Load, Target
from benchmarks.measure import Meter, delivery_latency, produce_latency
from benchmarks.rounds import ReadRound, StepRound
from benchmarks.servers import Kind, Service, Speech

DEADLINE_S = 60.0
INTERVAL_S = 0.05
LARGE = 2_000
"""From so many streams on, steps are rarer, so that load processes and servers can do them on two cores."""
INTERVAL_LARGE_S = 0.25
STEPS = 100
STEPS_QUICK = 10
STEPS_WARM_UP = 3
TOKENS_ENOUGH = 40_000
SETTLE_S = 0.1
BASELINE_STREAMS = 100
"""More POSTs at a time than these only queue up in the hand-rolled service."""


async def _run(streams: int, interval_s: float, most_steps: int, service: Service, quick: bool) -> Figures:
    steps = min(STEPS_QUICK if quick else most_steps, TOKENS_ENOUGH // streams)
    names = tuple(str(number) for number in range(streams))
    async with load_process(*service.readers) as readers, load_process(*service.producers) as engine:
        last = STEPS_WARM_UP + steps
        await readers.prepare(ReadRound(names, last + 1, DEADLINE_S, first_timed=STEPS_WARM_UP + 1, last_timed=last))
        await readers.start()
        await engine.run(StepRound(names, STEPS_WARM_UP, interval_s, DEADLINE_S))
        await engine.prepare(StepRound(names, steps, interval_s, DEADLINE_S, STEPS_WARM_UP + 1))
        await asyncio.sleep(SETTLE_S)
        meter = Meter(service, (readers, engine))
        await engine.start()
        stepped = await engine.result()
        # What is stored is not yet delivered: that takes as long again, where the service lags behind.
        await asyncio.sleep(max(SETTLE_S, max(stepped.latencies_us) / 1e6))
        seen = meter.read((stepped,))
        await engine.run(StepRound(names, 1, interval_s, DEADLINE_S, last + 1, final=True))
        read = await readers.result()
    behind = {Metric.BEHIND_MS: stepped.behind_us / 1_000}
    return seen.cost(stepped.tokens) | produce_latency(stepped) | delivery_latency(read) | behind


def engine_step(streams: int, targets: tuple[Target, ...] = (), *, most_steps: int = STEPS) -> Load:
    """The row with so many streams."""
    interval_s = INTERVAL_S if streams < LARGE else INTERVAL_LARGE_S
    return Load(
        row=f"engine-step-{streams}",
        title=f"engine step: {streams:,} stream{'s' * (streams > 1)}, a token each every {interval_s * 1000:.0f} ms",
        unit="token",
        run=partial(_run, streams, interval_s, most_steps),
        targets=targets,
        services=ALL_SERVICES if streams <= BASELINE_STREAMS else (Kind.BRIDGE, Kind.NATS),
        reads=Speech.MANY,
        writes=Speech.MANY,
    )


LOADS = (
    engine_step(100, (Target(Metric.CPU_US, at_most=15.0),)),
    engine_step(1_000, (Target(Metric.CPU_US, at_most=8.0),)),
    engine_step(5_000),
)
