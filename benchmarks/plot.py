"""Draws the sweeps: `python -m benchmarks.plot` makes docs/figures/*.svg of their last results."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.__main__ import main as benchmark
from benchmarks.processes import ROOT
from benchmarks.sweeps import SWEEPS, SweepResult, read

FIGURES = ROOT / "docs" / "figures"
# Each stands out on white and on black.
_COLOURS = ("#2f81f7", "#39a06b", "#e0823d", "#9a6fd0")
_INK = "#80868f"
_STYLE: Any = {
    "svg.fonttype": "none",
    # The same picture gives the same file.
    "svg.hashsalt": "llmbridge",
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


def draw(result: SweepResult, file: Path) -> None:
    """Draws one sweep as an SVG without a background. Hollow marks: the load did not keep its pace."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel=result.counted)
        axes.set_ylabel(f"server CPU, µs a {result.unit}")
        for line, colour in zip(result.lines, _COLOURS, strict=False):
            costs = {point.count: point.cpu_us for point in line.points}
            axes.plot(list(costs), list(costs.values()), color=colour, linewidth=2, label=line.label)
            for point in line.points:
                axes.plot(point.count, point.cpu_us, "o", color=colour, fillstyle="full" if point.kept_up else "none")
        counts = sorted({point.count for line in result.lines for point in line.points})
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(color=_INK, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws all sweeps. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="run `python -m benchmarks --sweep all` first")
    if parser.parse_args(arguments).measure and (code := benchmark(["--sweep", "all"])):
        return code
    for name in SWEEPS:
        try:
            result = read(name)
        except FileNotFoundError:
            sys.stderr.write(f"no result: run `python -m benchmarks --sweep {name}` first\n")
            return 1
        draw(result, FIGURES / f"cpu-by-{name}.svg")
        sys.stdout.write(f"{FIGURES / f'cpu-by-{name}.svg'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
