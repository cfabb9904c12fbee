"""Names and units of the measured figures, percentiles and medians. Knows no load and no report."""

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum

Figures = Mapping["Metric", float]
"""What one load measured of one service."""


class Metric(StrEnum):
    """A measured figure; the values are the names in the JSON report."""

    CPU_US = "server_cpu_us"
    """Processor time of service and Redis for each token or delivery, µs."""
    AUTOMATIC_CPU_US = "automatic_server_cpu_us"
    """As server_cpu_us, where a group's member reads that acknowledges automatically."""
    EXPLICIT_CPU_US = "explicit_server_cpu_us"
    """As server_cpu_us, where a group's member reads that acknowledges explicitly; its acknowledgements included."""
    AUTOMATIC_TIMES = "automatic_times_cursor"
    """automatic_server_cpu_us by server_cpu_us."""
    EXPLICIT_TIMES = "explicit_times_cursor"
    REDIS_CPU_US = "redis_cpu_us"
    """Redis' part of it, µs."""
    LOAD_CPU_US = "load_cpu_us"
    """Processor time of the load processes, µs: tells whether they were the bottleneck."""
    FOREIGN_PERCENT = "foreign_cpu_percent"
    """What all other processes used meanwhile, in % of all cores: figures with much of it are worth little."""
    PER_SECOND = "per_second"
    """Tokens or deliveries a second."""
    PER_MESSAGE = "tokens_per_message"
    """Tokens in a message that a reader receives."""
    PRODUCE_P50_MS = "produce_p50_ms"
    PRODUCE_P99_MS = "produce_p99_ms"
    DELIVERY_P50_MS = "delivery_p50_ms"
    """From just before the producer's call to the reader's receipt, ms."""
    DELIVERY_P99_MS = "delivery_p99_ms"
    BEHIND_MS = "behind_ms"
    """How late the engine step that was latest began: the load processes, or the service, did not keep up."""
    READER_KIB = "kib_per_reader"
    """Resident memory of the service that each idle reader adds, KiB."""
    REDIS_CONNECTIONS = "redis_connections"
    IDLE_CPU_PERCENT = "idle_cpu_percent"
    """Processor time of service and Redis while nothing happens, in % of one core."""


def percentile_ms(latencies_us: Sequence[int], percent: float) -> float:
    """The nearest-rank percentile, in ms, of latencies in µs. There must be at least one."""
    ordered = sorted(latencies_us)
    rank = max(1, math.ceil(percent / 100 * len(ordered)))
    return ordered[rank - 1] / 1000


def medians(runs: Sequence[Figures]) -> dict[Metric, float]:
    """Each figure's median over repeated runs, all of which must hold the same figures."""
    return {metric: statistics.median(run[metric] for run in runs) for metric in runs[0]}


def number(value: float | None) -> str:
    """As reports write it: three significant digits, at least, and no exponent; a dash where nothing was measured."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:.0f}" if size >= 100 or value == int(value) else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
