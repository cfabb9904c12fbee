"""One stream to many readers: what each delivery costs."""

from functools import partial

from benchmarks.figures import Figures, Metric
from benchmarks.load_process import load_process
from benchmarks.loads.load import ALL_SERVICES, Load, Target
from benchmarks.measure import delivery_latency, observe
from benchmarks.rounds import ProduceRound, ReadRound
from benchmarks.servers import Kind, Service, Speech

DEADLINE_S = 60.0
READERS = 200
TOKENS = 200
TOKENS_QUICK = 50
TOKENS_WARM_UP = 25
INTERVAL_S = 1 / 50


async def _run(readers: int, channels: int, most_tokens: int, service: Service, quick: bool) -> Figures:
    async with (
        load_process(*service.readers, channels) as reading,
        load_process(*service.producers) as producing,
    ):
        for name, tokens in (("warm", TOKENS_WARM_UP), ("fan", TOKENS_QUICK if quick else most_tokens)):
            seen = await observe(
                service,
                (reading, ReadRound((name,) * readers, tokens, DEADLINE_S)),
                (producing, ProduceRound((name,), tokens, DEADLINE_S, interval_s=INTERVAL_S)),
            )
    read, _ = seen.results
    return seen.cost(read.tokens) | delivery_latency(read)


def _title(readers: int, how: str) -> str:
    return f"one stream at 50 tokens/s to {readers} reader{'s' * (readers > 1)} {how}"


def on_channels(readers: int, channels: int, targets: tuple[Target, ...] = (), *, most_tokens: int = TOKENS) -> Load:
    """Readers with a call each."""
    return Load(
        row=f"fanout-{channels}ch",
        title=_title(readers, f"on {channels} channel{'s' * (channels > 1)}"),
        unit="delivery",
        run=partial(_run, readers, channels, most_tokens),
        targets=targets,
        services=ALL_SERVICES,
    )


def over_one_call(readers: int, targets: tuple[Target, ...] = (), *, most_tokens: int = TOKENS) -> Load:
    """Readers that share a SubscribeMany call."""
    return Load(
        row=f"fanout-{readers}-many",
        title=_title(readers, "over one SubscribeMany call, written over one ProduceMany call"),
        unit="delivery",
        run=partial(_run, readers, 1, most_tokens),
        targets=targets,
        services=(Kind.BRIDGE,),
        reads=Speech.MANY,
        writes=Speech.MANY,
    )


LOADS = (
    on_channels(READERS, 1, (Target(Metric.CPU_US, at_most=20.0), Target(Metric.CPU_US, times=1.0))),
    on_channels(READERS, READERS, (Target(Metric.CPU_US, at_most=25.0), Target(Metric.CPU_US, times=1.0))),
    over_one_call(READERS, (Target(Metric.CPU_US, at_most=2.5),)),
    Load(
        row="fanout-sse",
        title=_title(READERS, "by Server-Sent Events"),
        unit="delivery",
        run=partial(_run, READERS, 1, TOKENS),
        targets=(Target(Metric.CPU_US, times=0.5), Target(Metric.DELIVERY_P99_MS, times=1.0)),
        reads=Speech.SSE,
        writes=Speech.CLIENT,
    ),
)
