"""What a load is: a row of the report, how it is run on a service, and the figures it is to reach."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from benchmarks.figures import Figures, Metric
from benchmarks.servers import Kind, Service, Speech

NAMES = {Kind.BRIDGE: "bridge", Kind.NATS: "NATS", Kind.BASELINE: "hand-rolled"}
"""What reports call the services, in the order of their columns."""
ALL_SERVICES = tuple(NAMES)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that the bridge is to reach: at most a number, or so many times the figure of another service."""

    metric: Metric
    at_most: float | None = None
    times: float | None = None
    of: Kind = Kind.BASELINE

    def limit(self, figures: Mapping[Kind, Figures]) -> float | None:
        """The number not to exceed; None if it depends on a figure that was not measured."""
        if self.times is None:
            return self.at_most
        other = figures.get(self.of, {}).get(self.metric)
        return None if other is None else other * self.times

    def part_used(self, figures: Mapping[Kind, Figures]) -> float | None:
        """The bridge's figure by the limit: reached up to 1; None if that was not measured."""
        limit, reached = self.limit(figures), figures.get(Kind.BRIDGE, {}).get(self.metric)
        return None if limit is None or reached is None else reached / limit

    def __str__(self) -> str:
        if self.times is None:
            return f"≤ {self.at_most:g}"
        return f"≤ {NAMES[self.of]}" if self.times == 1 else f"≤ {self.times:g} × {NAMES[self.of]}"


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
    targets: tuple[Target, ...] = ()
    services: tuple[Kind, ...] = (Kind.BRIDGE, Kind.BASELINE)
    """Which can do it, and are told in this row."""
    reads: Speech = Speech.CALLS
    """How the bridge's readers speak to it."""
    writes: Speech = Speech.CALLS
    """How the bridge's producers speak to it."""
