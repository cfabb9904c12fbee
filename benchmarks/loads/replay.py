"""A long stream that has ended, read from its beginning by fresh readers: what catching up costs.

One replay takes the servers only tens of ms, so it is repeated.
"""

from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import LoadProcess, load_process
from benchmarks.loads.load import ALL_SERVICES, Load, Target
from benchmarks.measure import observe
from benchmarks.rounds import ProduceRound, ReplayRound
from benchmarks.servers import Kind, Service, Speech

DEADLINE_S = 120.0
TOKENS = 20_000
TOKENS_QUICK = 4_000
WARM_UP_TIMES = 3


async def fill(service: Service, producer: LoadProcess, stream: str, tokens: int, per_entry: int) -> None:
    """Writes a stream, each call an entry; calls follow each other without waiting where the service has a way to."""
    awaited = service.kind is Kind.BASELINE
    await producer.run(ProduceRound((stream,), tokens, DEADLINE_S, per_entry, awaited=awaited))


async def _run(per_entry: int, times: int, service: Service, quick: bool) -> Figures:
    tokens = TOKENS_QUICK if quick else TOKENS
    async with load_process(*service.producers) as producer, load_process(*service.readers) as reader:
        await fill(service, producer, "long", tokens, per_entry)
        await reader.run(ReplayRound("long", tokens, WARM_UP_TIMES, DEADLINE_S))
        seen = await observe(service, (reader, ReplayRound("long", tokens, times, DEADLINE_S)))
    (read,) = seen.results
    return seen.cost(read.tokens) | {Metric.PER_MESSAGE: read.tokens / read.messages}


LOADS = tuple(
    Load(
        row=f"replay-{per_entry}",
        title=f"replay of 20,000 tokens stored by {per_entry}, one fresh reader",
        unit="token",
        run=partial(_run, per_entry, times),
        targets=(Target(Metric.CPU_US, at_most=most), Target(Metric.CPU_US, times=1.0)),
        services=ALL_SERVICES,
        writes=Speech.MANY,
    )
    for per_entry, times, most in ((1, 10, 0.8), (20, 30, 0.25))
)
