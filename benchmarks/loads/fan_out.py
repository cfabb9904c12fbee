"""One stream to many readers: what each delivery costs."""

from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import load_process
from benchmarks.loads.load import Load, Target
from benchmarks.measure import delivery_latency, observe
from benchmarks.rounds import ProduceRound, ReadRound
from benchmarks.servers import Service

DEADLINE_S = 60.0
READERS = 200
TOKENS = 250
TOKENS_QUICK = 50
TOKENS_WARM_UP = 25
INTERVAL_S = 1 / 50


async def _run(channels: int, service: Service, quick: bool) -> Figures:
    async with (
        load_process(*service.readers, channels) as readers,
        load_process(service.kind, service.target, channels=1) as producer,
    ):
        for name, tokens in (("warm", TOKENS_WARM_UP), ("fan", TOKENS_QUICK if quick else TOKENS)):
            seen = await observe(
                service,
                (readers, ReadRound((name,) * READERS, tokens, DEADLINE_S)),
                (producer, ProduceRound((name,), tokens, DEADLINE_S, interval_s=INTERVAL_S)),
            )
    read, _ = seen.results
    return seen.cost(read.tokens) | delivery_latency(read)


LOADS = (
    *(
        Load(
            row=f"fanout-{channels}ch",
            title=f"one stream at 50 tokens/s to {READERS} readers on {channels} channel{'s' * (channels > 1)}",
            unit="delivery",
            run=partial(_run, channels),
            targets=(Target(Metric.CPU_US, of_baseline=1.0),),
        )
        for channels in (1, READERS)
    ),
    Load(
        row="fanout-sse",
        title=f"one stream at 50 tokens/s to {READERS} readers by Server-Sent Events",
        unit="delivery",
        run=partial(_run, 1),
        targets=(Target(Metric.CPU_US, of_baseline=0.5), Target(Metric.DELIVERY_P99_MS, of_baseline=1.0)),
        http=True,
    ),
)
