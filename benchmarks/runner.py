"""Runs the loads, each on a fresh service, and gathers their results. Knows no particular load."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.figures import Figures, medians
from benchmarks.load_process import LoadError
from benchmarks.loads import Load
from benchmarks.results import RowResult, ServiceResult
from benchmarks.servers import ServerError, running_service


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    loads: tuple[Load, ...]
    services: tuple[str, ...]
    """Of "bridge" and "baseline"."""
    repeat: int
    quick: bool
    bridge_command: tuple[str, ...]


async def run(plan: Plan) -> list[RowResult]:
    """Runs every load on every service as often as asked, the services in turn, so that both meet the same machine."""
    rows: list[RowResult] = []
    for load in plan.loads:
        runs: dict[str, list[Figures]] = {kind: [] for kind in plan.services}
        failures: dict[str, str] = {}
        for number in range(1, plan.repeat + 1):
            for kind in plan.services:
                if kind in failures or not (kind == "bridge" or load.baseline):
                    continue
                sys.stderr.write(f"{load.row}: {kind}, run {number} of {plan.repeat}\n")
                try:
                    async with running_service(kind, plan.bridge_command, http=load.http) as service:
                        runs[kind].append(await load.run(service, plan.quick))
                except (LoadError, ServerError, psutil.NoSuchProcess) as error:
                    failures[kind] = str(error)
                    sys.stderr.write(f"{load.row}: {kind} FAILED: {error}\n")
        rows.append(
            RowResult(
                load,
                bridge=_result("bridge", runs, failures),
                baseline=_result("baseline", runs, failures),
            )
        )
    return rows


def _result(kind: str, runs: dict[str, list[Figures]], failures: dict[str, str]) -> ServiceResult | None:
    if kind not in runs or not (runs[kind] or kind in failures):
        return None
    return ServiceResult(_medians(runs[kind]), tuple(runs[kind]), failures.get(kind))


def _medians(runs: Sequence[Figures]) -> Figures:
    return medians(runs) if runs else {}
