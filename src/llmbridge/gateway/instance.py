"""What the gateways of one instance's workers know together. Where a gateway is alone, that is what it knows itself.

How workers ask each other is not known here.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from llmbridge.gateway.counts import Counts

__all__ = ["Instance", "Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker tells of itself: its bridge's part, then its gateway's. Seconds are those of `Counts`."""

    worker: int = 0
    serving: bool = True
    connections: int = 0
    resident_bytes: int = 0
    tokens: int = 0
    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    reads: int = 0
    """Subscribe calls of the gateway."""
    chats: int = 0
    """Answers of the upstream under way."""


async def _nobody() -> Sequence[Report | None]:
    return ()


class Instance:
    """This worker and the others.

    `own_bridge` gives the part of this worker's bridge; `others` the reports of the others, None for each that does not
    answer.
    """

    def __init__(
        self,
        workers: int = 1,
        own_bridge: Callable[[], Report] = Report,
        others: Callable[[], Awaitable[Sequence[Report | None]]] = _nobody,
    ) -> None:
        self.workers = workers
        """How many there should be."""
        self.counts = Counts()
        """Of this worker's gateway."""
        self._own_bridge = own_bridge
        self._others = others
        self._gauges: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def measure(self, gauges: Callable[[], tuple[int, int]]) -> None:
        """Have reads and chats of this worker's gateway be measured by this."""
        self._gauges = gauges

    def own(self) -> Report:
        """Report on this worker."""
        counts = self.counts
        reads, chats = self._gauges()
        return replace(
            self._own_bridge(),
            tokens=counts.tokens,
            calls=counts.calls,
            errors=counts.errors,
            seconds=counts.seconds,
            reads=reads,
            chats=chats,
        )

    async def reports(self) -> list[Report]:
        """Report on all workers that answer, by number."""
        others = [report for report in await self._others() if report is not None]
        return sorted([self.own(), *others], key=lambda report: report.worker)

    async def total(self) -> Counts:
        """Add up what went through the gateways of all workers that answer."""
        reports = await self.reports()
        return Counts(
            tokens=sum(report.tokens for report in reports),
            calls=sum(report.calls for report in reports),
            errors=sum(report.errors for report in reports),
            seconds=sum(report.seconds for report in reports),
        )
