"""The benchmark's command line: `python -m benchmarks`."""

import argparse
import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import sweeps
from benchmarks.loads import ALL_LOADS, ALL_SERVICES, Load
from benchmarks.processes import ServerError
from benchmarks.report import as_json, markdown
from benchmarks.results import Machine, Results, this_machine
from benchmarks.runner import Plan, run
from benchmarks.servers import BRIDGE_COMMAND, Kind

_Result = TypeVar("_Result")


def _loads(names: str) -> tuple[Load, ...]:
    by_row = {load.row: load for load in ALL_LOADS}
    unknown = [name for name in names.split(",") if name not in by_row]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}")
    return tuple(by_row[name] for name in names.split(","))


def _services(names: str) -> tuple[Kind, ...]:
    try:
        return tuple(Kind(name) for name in names.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"not a whole number above 0: {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {load.row:<22} {load.title}" for load in ALL_LOADS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures the bridge's server CPU, speed, latency and memory beside those of NATS\n"
        "JetStream and of a hand-rolled service.\n"
        "Prints Markdown. Readers check every token: a row that lost or doubled one fails, and the exit code is 1.",
        epilog=f"rows:\n{rows}",
    )
    parser.add_argument("--rows", type=_loads, default=ALL_LOADS, metavar="A,B", help="only these rows")
    parser.add_argument(
        "--repeat", type=_count, default=3, metavar="N", help="runs of each row, default 3; medians are told"
    )
    parser.add_argument("--quick", action="store_true", help="short loads, one run: shows that it works, not how fast")
    parser.add_argument(
        "--services",
        type=_services,
        default=ALL_SERVICES,
        metavar="A,B",
        help=f"only these of {', '.join(ALL_SERVICES)}; baseline is the hand-rolled service",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to a file too")
    parser.add_argument(
        "--sweep",
        choices=(*sweeps.SWEEPS, "all"),
        help="measure how the cost changes with the number of streams or readers, for `python -m benchmarks.plot`",
    )
    parser.add_argument(
        "--bridge-command",
        type=shlex.split,
        default=BRIDGE_COMMAND,
        metavar="COMMAND",
        help="how to start the bridge, to compare builds; --host and --port are added",
    )
    return parser


async def _interruptible(work: Coroutine[Any, Any, _Result]) -> _Result:
    task = asyncio.current_task()
    assert task is not None
    # As an interrupt does: all processes that were started are ended.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def _measure_rows(plan: Plan, machine: Machine, json_file: Path | None) -> bool:
    rows = asyncio.run(_interruptible(run(plan)))
    results = Results(machine, plan.repeat, plan.quick, tuple(rows))
    sys.stdout.write(markdown(results))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(as_json(results), indent=2) + "\n")
    return not any(row.failures() for row in rows)


def _measure_sweeps(names: Sequence[str], plan: Plan, machine: Machine) -> bool:
    succeeded = True
    for name in names:
        result = asyncio.run(_interruptible(sweeps.measure(sweeps.SWEEPS[name], plan, machine)))
        sweeps.write(result)
        sys.stdout.write(sweeps.markdown(result) + "\n")
        succeeded = succeeded and not any(line.failures for line in result.lines)
    return succeeded


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        machine = this_machine()
        plan = Plan(
            loads=options.rows,
            services=tuple(kind for kind in options.services if kind is not Kind.NATS or machine.nats),
            repeat=1 if options.quick or options.sweep else options.repeat,
            quick=options.quick,
            bridge_command=tuple(options.bridge_command),
        )
        if options.sweep:
            names = tuple(sweeps.SWEEPS) if options.sweep == "all" else (options.sweep,)
            succeeded = _measure_sweeps(names, plan, machine)
        else:
            succeeded = _measure_rows(plan, machine, options.json)
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("interrupted\n")
        return 130
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
