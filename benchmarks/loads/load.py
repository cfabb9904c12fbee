"""What a load is: a row of the report, how it is run on a service, and the figures it is to reach."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.figures import Figures, Metric
from benchmarks.servers import Service


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that the bridge is to reach: at most a number, or a multiple of the hand-rolled service's figure."""

    metric: Metric
    at_most: float | None = None
    of_baseline: float | None = None

    def limit(self, baseline: Figures) -> float | None:
        """The number not to exceed; None if it depends on a figure that was not measured."""
        if self.of_baseline is None:
            return self.at_most
        return baseline[self.metric] * self.of_baseline if self.metric in baseline else None

    def met(self, bridge: Figures, baseline: Figures) -> bool | None:
        """Whether it is reached; None if that was not measured."""
        limit = self.limit(baseline)
        return None if limit is None or self.metric not in bridge else bridge[self.metric] <= limit

    def __str__(self) -> str:
        if self.of_baseline is None:
            return f"≤ {self.at_most:g}"
        return "≤ hand-rolled" if self.of_baseline == 1 else f"≤ {self.of_baseline:g} × hand-rolled"


@dataclass(frozen=True, slots=True)
class Load:
    """One row.

    `run` gets a fresh service and whether to be quick; it raises LoadError if a token was lost, doubled or misplaced.
    """

    row: str
    title: str
    unit: str
    """What processor time and throughput are counted by: "token" or "delivery"."""
    run: Callable[[Service, bool], Awaitable[Figures]]
    targets: tuple[Target, ...]
    baseline: bool = True
    """Whether the hand-rolled service can do it, too."""
    http: bool = False
    """Whether readers read Server-Sent Events, of the bridge's gateway in its process."""
