"""What a run of the benchmark found: plain values that the reports are made from."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from benchmarks.cpu import cores
from benchmarks.figures import Metric
from benchmarks.loads import Load
from benchmarks.servers import redis_version


@dataclass(frozen=True, slots=True)
class ServiceResult:
    """One load on one service: the medians and what they were made from, or why it failed."""

    medians: Mapping[Metric, float]
    runs: tuple[Mapping[Metric, float], ...]
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """One load on the bridge and, unless skipped, on the hand-rolled service."""

    load: Load
    bridge: ServiceResult | None
    baseline: ServiceResult | None

    def failures(self) -> list[str]:
        """One line for each service on which the load failed."""
        services = (("bridge", self.bridge), ("hand-rolled", self.baseline))
        return [
            f"{self.load.row} on {name}: {result.failure}"
            for name, result in services
            if result is not None and result.failure is not None
        ]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were measured on."""

    cores: int
    system: str
    python: str
    redis: str
    grpcio: str

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.system}, Python {self.python}, Redis {self.redis}, grpcio {self.grpcio}"


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run of the benchmark."""

    machine: Machine
    repeat: int
    quick: bool
    rows: tuple[RowResult, ...]


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(
        cores=cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        redis=redis_version(),
        grpcio=version("grpcio"),
    )
