"""How the cost of a token changes with the number of streams, or of readers: one load many times. Draws nothing."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.figures import Figures, Metric, number
from benchmarks.loads import Load
from benchmarks.loads.engine_step import engine_step
from benchmarks.loads.fan_out import on_channels, over_one_call
from benchmarks.loads.many_streams import paced
from benchmarks.processes import ROOT
from benchmarks.results import Machine
from benchmarks.runner import Plan, run
from benchmarks.servers import Kind

RESULTS = ROOT / "benchmarks" / "results"
STEPS = 50
TOKENS = 120


@dataclass(frozen=True, slots=True)
class Line:
    """One way to do it, on one service."""

    label: str
    kind: Kind
    load: Callable[[int], Load]
    at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Lines that belong into one picture."""

    name: str
    counted: str
    """What there is more and more of."""
    unit: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured with so many streams or readers."""

    count: int
    cpu_us: float
    """Of the service and its Redis, for each token or delivery."""
    redis_cpu_us: float
    kept_up: bool
    """Whether every step began nearly when it was due."""


def _step(streams: int) -> Load:
    return engine_step(streams, most_steps=STEPS)


def _fan_out(readers: int) -> Load:
    return on_channels(readers, 1, most_tokens=TOKENS)


_STREAMS = (1, 10, 100, 1_000, 5_000)
_READERS = (1, 10, 50, 200)

SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            "streams",
            "streams, a token each every 50 ms (5,000: every 250 ms)",
            "token",
            (
                Line("bridge, a step over shared calls", Kind.BRIDGE, _step, _STREAMS),
                Line("bridge, calls of their own", Kind.BRIDGE, lambda count: paced(count, tokens=STEPS), (1, 10, 100)),
                Line("NATS JetStream", Kind.NATS, _step, _STREAMS),
                Line("hand-rolled", Kind.BASELINE, _step, (1, 10, 100)),
            ),
        ),
        Sweep(
            "readers",
            "readers of one stream at 50 tokens/s",
            "delivery",
            (
                Line(
                    "bridge, over one shared call",
                    Kind.BRIDGE,
                    lambda count: over_one_call(count, most_tokens=TOKENS),
                    _READERS,
                ),
                Line("bridge, calls of their own", Kind.BRIDGE, _fan_out, _READERS),
                Line("NATS JetStream", Kind.NATS, _fan_out, _READERS),
                Line("hand-rolled", Kind.BASELINE, _fan_out, _READERS),
            ),
        ),
    )
}
_LATE_MS = 100.0


@dataclass(frozen=True, slots=True)
class LineResult:
    """What was measured along one line."""

    label: str
    points: tuple[Point, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What was measured in one sweep."""

    name: str
    counted: str
    unit: str
    machine: str
    lines: tuple[LineResult, ...]


async def measure(sweep: Sweep, plan: Plan, machine: Machine) -> SweepResult:
    """Runs a sweep on the plan's services, as often as the plan says."""
    lines: list[LineResult] = []
    for line in sweep.lines:
        if line.kind in plan.services:
            loads = tuple(line.load(count) for count in line.at)
            rows = await run(replace(plan, loads=loads, services=(line.kind,)))
            points = [
                _point(count, row.figures()[line.kind])
                for count, row in zip(line.at, rows, strict=True)
                if row.figures()[line.kind]
            ]
            lines.append(LineResult(line.label, tuple(points), tuple(one for row in rows for one in row.failures())))
    return SweepResult(sweep.name, sweep.counted, sweep.unit, str(machine), tuple(lines))


def _point(count: int, figures: Figures) -> Point:
    return Point(
        count,
        cpu_us=figures[Metric.CPU_US],
        redis_cpu_us=figures.get(Metric.REDIS_CPU_US, 0.0),
        kept_up=figures.get(Metric.BEHIND_MS, 0.0) < _LATE_MS,
    )


def markdown(result: SweepResult) -> str:
    """A table: a line for each number of streams or readers, a column for each way."""
    counts = sorted({point.count for line in result.lines for point in line.points})
    rows = [
        [f"{result.counted}: server CPU, µs a {result.unit}", *(line.label for line in result.lines)],
        ["---"] * (len(result.lines) + 1),
    ]
    for count in counts:
        cells = [{point.count: point for point in line.points}.get(count) for line in result.lines]
        rows.append([f"{count:,}", *(_cell(point) for point in cells)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    failures = "".join(f"\nFAILED {failure}\n" for line in result.lines for failure in line.failures)
    return f"{table}\n\nIn brackets: Redis' part. * did not keep up. {result.machine}.\n{failures}"


def _cell(point: Point | None) -> str:
    if point is None:
        return "–"
    redis = f" ({number(point.redis_cpu_us)})" if point.redis_cpu_us else ""
    return f"{number(point.cpu_us)}{redis}{'' if point.kept_up else ' *'}"


def write(result: SweepResult) -> None:
    """Keeps a result for `read`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    _file(result.name).write_text(json.dumps(asdict(result), indent=2) + "\n")


def read(name: str) -> SweepResult:
    """The last result of a sweep. Raises FileNotFoundError."""
    fields = json.loads(_file(name).read_text())
    lines = tuple(
        LineResult(line["label"], tuple(Point(**point) for point in line["points"]), tuple(line["failures"]))
        for line in fields.pop("lines")
    )
    return SweepResult(**fields, lines=lines)


def _file(name: str) -> Path:
    return RESULTS / f"sweep-{name}.json"
