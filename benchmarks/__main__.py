"""The benchmark's command line: `python -m benchmarks`."""

import argparse
import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loads import ALL_LOADS, Load
from benchmarks.report import as_json, markdown
from benchmarks.results import Results, RowResult, this_machine
from benchmarks.runner import Plan, run
from benchmarks.servers import BRIDGE_COMMAND, ServerError


def _loads(names: str) -> tuple[Load, ...]:
    by_row = {load.row: load for load in ALL_LOADS}
    unknown = [name for name in names.split(",") if name not in by_row]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}")
    return tuple(by_row[name] for name in names.split(","))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"not a whole number above 0: {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {load.row:<13} {load.title}" for load in ALL_LOADS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures the bridge's server CPU, speed, latency and memory beside a hand-rolled service's.\n"
        "Prints Markdown. Readers check every token: a row that lost or doubled one fails, and the exit code is 1.",
        epilog=f"rows:\n{rows}",
    )
    parser.add_argument("--rows", type=_loads, default=ALL_LOADS, metavar="A,B", help="only these rows")
    parser.add_argument(
        "--repeat", type=_count, default=3, metavar="N", help="runs of each row, default 3; medians are told"
    )
    parser.add_argument("--quick", action="store_true", help="short loads, one run: shows that it works, not how fast")
    parser.add_argument("--skip-baseline", action="store_true", help="only the bridge")
    parser.add_argument("--skip-bridge", action="store_true", help="only the hand-rolled service")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to a file too")
    parser.add_argument(
        "--bridge-command",
        type=shlex.split,
        default=BRIDGE_COMMAND,
        metavar="COMMAND",
        help="how to start the bridge, to compare builds; --host and --port are added",
    )
    return parser


async def _run(plan: Plan) -> list[RowResult]:
    task = asyncio.current_task()
    assert task is not None
    # As an interrupt does: all processes that were started are ended.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(plan)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.skip_bridge and options.skip_baseline:
        parser.error("--skip-bridge and --skip-baseline leave nothing to measure")
    plan = Plan(
        loads=options.rows,
        services=("bridge",) * (not options.skip_bridge) + ("baseline",) * (not options.skip_baseline),
        repeat=1 if options.quick else options.repeat,
        quick=options.quick,
        bridge_command=tuple(options.bridge_command),
    )
    try:
        machine = this_machine()
        rows = asyncio.run(_run(plan))
        results = Results(machine, plan.repeat, plan.quick, tuple(rows))
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("interrupted\n")
        return 130
    sys.stdout.write(markdown(results))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
    return 1 if any(row.failures() for row in results.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
