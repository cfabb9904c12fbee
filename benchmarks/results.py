"""What a run of the benchmark found: plain values that the reports are made from."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from benchmarks.cpu import cores
from benchmarks.figures import Metric
from benchmarks.loads import NAMES, Load
from benchmarks.servers import Kind, nats_version, redis_version


@dataclass(frozen=True, slots=True)
class ServiceResult:
    """One load on one service: the medians and what they were made from, or why it failed."""

    medians: Mapping[Metric, float]
    runs: tuple[Mapping[Metric, float], ...]
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """One load on the services that were asked for and can do it."""

    load: Load
    services: Mapping[Kind, ServiceResult]

    def figures(self) -> dict[Kind, Mapping[Metric, float]]:
        """The medians of each service."""
        return {kind: result.medians for kind, result in self.services.items()}

    def failures(self) -> list[str]:
        """One line for each service on which the load failed."""
        return [
            f"{self.load.row} on {NAMES[kind]}: {result.failure}"
            for kind, result in self.services.items()
            if result.failure is not None
        ]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were measured on."""

    cores: int
    system: str
    python: str
    redis: str
    grpcio: str
    nats: str | None
    """None: there is no nats-server here."""

    def __str__(self) -> str:
        nats = f", NATS {self.nats}" if self.nats else ""
        return (
            f"{self.cores} cores, {self.system}, Python {self.python}, Redis {self.redis}, grpcio {self.grpcio}{nats}"
        )


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
        nats=nats_version(),
    )
