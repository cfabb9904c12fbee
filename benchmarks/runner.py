"""Runs the loads, each on a fresh service, and gathers their results. Knows no particular load."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.figures import Figures, medians
from benchmarks.load_process import LoadError
from benchmarks.loads import Load
from benchmarks.processes import ServerError
from benchmarks.results import RowResult, ServiceResult
from benchmarks.servers import Kind, running_service


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    loads: tuple[Load, ...]
    services: tuple[Kind, ...]
    repeat: int
    quick: bool
    bridge_command: tuple[str, ...]


async def run(plan: Plan) -> list[RowResult]:
    """Runs every load on every service as often as asked, the services in turn, so that all meet the same machine."""
    rows: list[RowResult] = []
    for load in plan.loads:
        kinds = [kind for kind in plan.services if kind in load.services]
        runs: dict[Kind, list[Figures]] = {kind: [] for kind in kinds}
        failures: dict[Kind, str] = {}
        for number in range(1, plan.repeat + 1):
            for kind in kinds:
                if kind in failures:
                    continue
                sys.stderr.write(f"{load.row}: {kind}, run {number} of {plan.repeat}\n")
                try:
                    async with running_service(
                        kind, bridge_command=plan.bridge_command, reads=load.reads, writes=load.writes
                    ) as service:
                        runs[kind].append(await load.run(service, plan.quick))
                except (LoadError, ServerError, psutil.NoSuchProcess) as error:
                    failures[kind] = str(error)
                    sys.stderr.write(f"{load.row}: {kind} FAILED: {error}\n")
        rows.append(
            RowResult(
                load,
                {kind: ServiceResult(_medians(runs[kind]), tuple(runs[kind]), failures.get(kind)) for kind in kinds},
            )
        )
    return rows


def _medians(runs: Sequence[Figures]) -> Figures:
    return medians(runs) if runs else {}
