"""What reading by a consumer group costs beside reading by cursor: the same load, three ways, on one service."""

from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import LoadProcess, load_process
from benchmarks.loads.load import Load, Target
from benchmarks.loads.replay import fill
from benchmarks.measure import observe
from benchmarks.rounds import ProduceRound, Reading, ReadRound, ReplayRound
from benchmarks.servers import Kind, Service, Speech

DEADLINE_S = 120.0
REPLAY_TOKENS = 20_000
REPLAY_TOKENS_QUICK = 4_000
WARM_UP_TIMES = 3
STREAMS = 50
LIVE_TOKENS = 80
LIVE_TOKENS_QUICK = 30
INTERVAL_S = 1 / 20

Measure = Callable[[Reading], Awaitable[float]]
"""Gives the servers' processor time for each token, in µs, where it is read in one way."""


async def _three_ways(measure: Measure) -> Figures:
    cursor, automatic, explicit = [await measure(reading) for reading in Reading]
    return {
        Metric.CPU_US: cursor,
        Metric.AUTOMATIC_CPU_US: automatic,
        Metric.EXPLICIT_CPU_US: explicit,
        Metric.AUTOMATIC_TIMES: automatic / cursor,
        Metric.EXPLICIT_TIMES: explicit / cursor,
    }


async def _replay(per_entry: int, times: int, service: Service, quick: bool) -> Figures:
    tokens = REPLAY_TOKENS_QUICK if quick else REPLAY_TOKENS
    async with load_process(*service.producers) as producer, load_process(*service.readers) as reader:
        await fill(service, producer, "long", tokens, per_entry)

        async def measure(reading: Reading) -> float:
            await reader.run(ReplayRound("long", tokens, WARM_UP_TIMES, DEADLINE_S, reading))
            seen = await observe(service, (reader, ReplayRound("long", tokens, times, DEADLINE_S, reading)))
            return seen.cost(seen.results[0].tokens)[Metric.CPU_US]

        return await _three_ways(measure)


async def _live(service: Service, quick: bool) -> Figures:
    tokens = LIVE_TOKENS_QUICK if quick else LIVE_TOKENS

    async def measure(readers: LoadProcess, producers: LoadProcess, reading: Reading) -> float:
        for turn in ("warm-up", "measured"):
            streams = tuple(f"{reading}-{turn}-{number}" for number in range(STREAMS))
            seen = await observe(
                service,
                (readers, ReadRound(streams, tokens, DEADLINE_S, reading)),
                (producers, ProduceRound(streams, tokens, DEADLINE_S, interval_s=INTERVAL_S)),
            )
        return seen.cost(seen.results[1].tokens)[Metric.CPU_US]

    async with (
        load_process(*service.producers) as readers,
        load_process(*service.producers) as producers,
    ):
        return await _three_ways(partial(measure, readers, producers))


_TARGETS = (Target(Metric.AUTOMATIC_TIMES, at_most=2.0),)

LOADS = (
    Load(
        row="group-live",
        title=f"{STREAMS} streams at 20 tokens/s, produced and read, one reader or member each",
        unit="token",
        run=_live,
        targets=_TARGETS,
        services=(Kind.BRIDGE,),
    ),
    *(
        Load(
            row=f"group-replay-{per_entry}",
            title=f"replay of 20,000 tokens stored by {per_entry}, by cursor and by group",
            unit="token",
            run=partial(_replay, per_entry, times),
            targets=_TARGETS,
            services=(Kind.BRIDGE,),
            writes=Speech.MANY,
        )
        for per_entry, times in ((1, 5), (20, 15))
    ),
)
