"""What a worker knows of its instance: it asks its siblings for what the gateway tells of all of them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from resource import getpagesize

from llmbridge.gateway.instance import Instance, Report
from llmbridge.hub.connections import Connections
from llmbridge.rpc import siblings
from llmbridge.rpc.health import Health
from llmbridge.rpc.siblings import Siblings
from llmbridge.server.assignment import Place


class WorkerInstance:
    """The instance as one worker of it sees it; with no place, as a process that is alone."""

    def __init__(self, place: Place | None, health: Health, connections: Connections) -> None:
        self._worker = place.worker if place else 0
        self._health = health
        self._connections = connections
        self.siblings = Siblings(place.siblings if place else {})
        self.of_gateways = Instance(place.workers if place else 1, self._own, self._others)

    def report(self) -> siblings.Report:
        """Tell siblings of this worker."""
        return asdict(self.of_gateways.own())

    def _own(self) -> Report:
        return Report(
            worker=self._worker,
            serving=self._health.serving,
            connections=len(self._connections),
            resident_bytes=_resident_bytes(),
        )

    async def _others(self) -> Sequence[Report | None]:
        return [None if report is None else _decoded(report) for report in (await self.siblings.reports()).values()]


def _decoded(report: siblings.Report) -> Report:
    # All numbers come as float.
    return Report(
        worker=int(report["worker"]),
        serving=bool(report["serving"]),
        connections=int(report["connections"]),
        resident_bytes=int(report["resident_bytes"]),
        tokens=int(report["tokens"]),
        calls=int(report["calls"]),
        errors=int(report["errors"]),
        seconds=report["seconds"],
        reads=int(report["reads"]),
        chats=int(report["chats"]),
    )


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        # Only Linux tells it there; a worker with siblings runs on Linux.
        return 0
    return pages * getpagesize()
