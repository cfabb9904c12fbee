"""A long stream that has ended, read from its beginning by fresh readers: what catching up costs.

One replay takes the servers tens of ms, too little to measure by the kernel's clock, so it is repeated.
"""

from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import load_process
from benchmarks.loads.load import Load, Target
from benchmarks.measure import observe
from benchmarks.rounds import ProduceRound, ReplayRound
from benchmarks.servers import Service

DEADLINE_S = 120.0
TOKENS = 20_000
TOKENS_QUICK = 4_000
WARM_UP_TIMES = 3


async def _run(per_entry: int, times: int, service: Service, quick: bool) -> Figures:
    tokens = TOKENS_QUICK if quick else TOKENS
    async with load_process(service.kind, service.target, channels=1) as reader:
        await reader.run(ProduceRound(("long",), tokens, DEADLINE_S, per_entry))
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
        targets=(Target(Metric.CPU_US, at_most=1.5), Target(Metric.CPU_US, of_baseline=1.0)),
    )
    for per_entry, times in ((1, 30), (20, 60))
)
