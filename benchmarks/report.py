"""The reports: Markdown tables for people, JSON for programs. Measures nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.figures import Figures, Metric
from benchmarks.loads import Target
from benchmarks.results import Results, RowResult, ServiceResult

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
    bridge, baseline = _figures(row.bridge), _figures(row.baseline)
    return {
        "row": row.load.row,
        "title": row.load.title,
        "unit": row.load.unit,
        "bridge": asdict(row.bridge) if row.bridge else None,
        "baseline": asdict(row.baseline) if row.baseline else None,
        "targets": [
            {**asdict(target), "limit": target.limit(baseline), "met": target.met(bridge, baseline)}
            for target in row.load.targets
        ],
    }


def _costs(rows: Sequence[RowResult]) -> str:
    lines: list[Sequence[str]] = []
    for row in rows:
        bridge, baseline = _figures(row.bridge), _figures(row.baseline)
        for metric, label in _COST_LABELS.items():
            targets = [target for target in row.load.targets if target.metric is metric]
            measured = metric in bridge or metric in baseline
            if not measured or (metric is Metric.DELIVERY_P99_MS and not targets):
                continue
            lines.append(
                (
                    f"`{row.load.row}`: {row.load.title}",
                    label.format(unit=row.load.unit),
                    _figure(metric, bridge),
                    _figure(metric, baseline),
                    _ratio(metric, bridge, baseline),
                    _targets(targets, bridge, baseline),
                )
            )
    return _table(("load", "figure", "bridge", "hand-rolled", "ratio", "target"), lines)


def _speeds(rows: Sequence[RowResult]) -> str:
    lines: list[Sequence[str]] = []
    for row in rows:
        for name, result in (("bridge", row.bridge), ("hand-rolled", row.baseline)):
            figures = _figures(result)
            if Metric.PER_SECOND in figures:
                lines.append(
                    (
                        f"`{row.load.row}`",
                        name,
                        f"{figures[Metric.PER_SECOND]:,.0f}",
                        _pair(figures, Metric.PRODUCE_P50_MS, Metric.PRODUCE_P99_MS),
                        _pair(figures, Metric.DELIVERY_P50_MS, Metric.DELIVERY_P99_MS),
                        _number(figures.get(Metric.PER_MESSAGE)),
                        _number(figures[Metric.LOAD_CPU_US]),
                        _number(figures[Metric.FOREIGN_PERCENT]),
                    )
                )
    header = (
        *("load", "service", "tokens (fan-out: deliveries) a second", "produce p50 / p99, ms"),
        *("delivery p50 / p99, ms", "tokens a message", "load processes' CPU, µs", "other processes, % of the machine"),
    )
    return _table(header, lines)


def _disturbance(rows: Sequence[RowResult]) -> str:
    disturbed = [
        row.load.row
        for row in rows
        for result in (row.bridge, row.baseline)
        if _figures(result).get(Metric.FOREIGN_PERCENT, 0.0) > _DISTURBED_PERCENT
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


def _figures(result: ServiceResult | None) -> Figures:
    return {} if result is None else result.medians


def _figure(metric: Metric, figures: Figures) -> str:
    text = _number(figures.get(metric))
    if metric is Metric.CPU_US and Metric.REDIS_CPU_US in figures:
        text += f" ({_number(figures[Metric.REDIS_CPU_US])})"
    return text


def _ratio(metric: Metric, bridge: Figures, baseline: Figures) -> str:
    if metric not in bridge or not baseline.get(metric):
        return _NONE
    return f"{bridge[metric] / baseline[metric]:.2f}"


def _targets(targets: Sequence[Target], bridge: Figures, baseline: Figures) -> str:
    words = {True: "met", False: "**missed**", None: "not measured"}
    return "; ".join(f"{target} {words[target.met(bridge, baseline)]}" for target in targets) or _NONE


def _pair(figures: Figures, first: Metric, second: Metric) -> str:
    return f"{_number(figures[first])} / {_number(figures[second])}" if first in figures else _NONE


def _number(value: float | None) -> str:
    """Three significant digits, at least, and no exponent."""
    if value is None:
        return _NONE
    size = abs(value)
    return f"{value:.0f}" if size >= 100 or value == int(value) else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
