"""One chaos run: a load on a topology, faults into it, and a report of what was done and what became of it.

Knows topologies only by their protocol, and leaves judging to the verdict.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.load import Load, Shape
from tests.chaos.topology import DidNotBite, Fault, Topology
from tests.chaos.verdict import Findings
from tests.chaos.ways import clients_of

if TYPE_CHECKING:
    from tests.chaos.browsers import Browsers

_SAMPLE_SECONDS = 5.0
_FLOW_SECONDS = 60.0
_MIB = 1024 * 1024


@dataclass(slots=True)
class Report:
    """What a run did, and what came of it."""

    topology: str
    seed: int
    findings: Findings = field(default_factory=Findings)
    faults: Counter[str] = field(default_factory=Counter)
    harmless: list[str] = field(default_factory=list)
    """Faults that could not be seen to bite, which may be where two meet; each with the reason."""
    missing: Mapping[str, str] = field(default_factory=dict)
    comebacks: int = 0
    """How often readers in browsers came back after what they had not asked for."""
    seconds: float = 0.0
    memory: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """Seconds since the beginning, and resident bytes by kind of process."""

    def note(self, problem: str) -> None:
        """Note what is wrong with the topology itself."""
        self.findings.unexpected_errors += 1
        self.findings.problems.append(problem)

    def table(self) -> str:
        """Tell it as a table in Markdown."""
        found = self.findings
        rows = [
            ("topology, seed, seconds", f"{self.topology}, {self.seed}, {self.seconds:.0f}"),
            ("faults injected", f"{self.faults.total():,}"),
            *((f"– {kind}", f"{count:,}") for kind, count in sorted(self.faults.items())),
            ("streams; readers", f"{found.streams:,}; {found.readers:,}"),
            ("tokens sent", f"{found.sent:,}"),
            ("– acknowledged", f"{found.acknowledged:,}"),
            ("– delivered, to all readers together", f"{found.delivered:,}"),
            ("– lost", f"{found.lost:,}"),
            ("– repeated", f"{found.repeated:,}"),
            ("– reordered", f"{found.reordered:,}"),
            ("– that nobody had sent", f"{found.foreign:,}"),
            ("wrong or missing completions", f"{found.wrong_ends:,}"),
            ("writers and readers that hang", f"{found.hung:,}"),
            ("errors where none may be", f"{found.unexpected_errors:,}"),
            ("readers; writers told of lost history", f"{found.history_errors:,}; {found.writers_told:,}"),
            ("times that browsers came back after a cut", f"{self.comebacks:,}"),
            ("longest stall", f"{found.longest_stall:.1f} s"),
            *((f"memory of {kind}", text) for kind, text in self._memory().items()),
        ]
        return "\n".join(["| what | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])

    def _memory(self) -> dict[str, str]:
        """Begin (once streams are also expiring, in a run that is long enough), highest, end."""
        if not self.memory:
            return {}
        settled = min(180.0, self.seconds / 3)
        samples = [sample for at, sample in self.memory if at >= settled] or [self.memory[-1][1]]
        # A kind that is restarting at the moment has nothing.
        seen = {kind: [sample[kind] for sample in samples if sample[kind]] for kind in samples[-1]}
        return {
            kind: f"{sizes[0] / _MIB:.0f} MiB after {settled:.0f} s, {max(sizes) / _MIB:.0f} at most, "
            f"{sizes[-1] / _MIB:.0f} at the end"
            for kind, sizes in seen.items()
            if sizes
        }


class UnknownFault(ValueError):
    """A fault was named that the topology does not offer on this machine."""


class Injector:
    """Carries out faults and counts them. Its dice are its own, so that a seed always draws the same faults."""

    def __init__(self, report: Report, faults: Sequence[Fault]) -> None:
        self.dice = random.Random(report.seed)
        self.faults = {fault.kind: fault for fault in faults}
        self._report = report

    def named(self, kinds: Sequence[str]) -> list[Fault]:
        """Give the faults of these kinds, or all where none is named. Raises UnknownFault."""
        unknown = [kind for kind in kinds if kind not in self.faults]
        if unknown:
            raise UnknownFault(f"no fault {unknown[0]!r} here; there are: {'; '.join(sorted(self.faults))}")
        return [fault for kind, fault in self.faults.items() if not kinds or kind in kinds]

    async def inject(self, fault: Fault, seconds: float, *, must_bite: bool = True) -> None:
        """Carry one out; what it finds wrong is a finding. Raises DidNotBite, or only notes that."""
        dice = random.Random(self.dice.getrandbits(32))
        self._report.faults[fault.kind] += 1
        try:
            await fault.act(dice, seconds)
        except DidNotBite as error:
            if must_bite:
                raise
            self._report.harmless.append(f"{fault.kind}: {error}")
        except AssertionError as error:
            self._report.note(f"{fault.kind}: {error}")


Plan = Callable[[Injector], Awaitable[None]]
"""Injects faults, and returns when it is enough. The load is flowing by then."""


def together(*kinds: str, seconds: float) -> Plan:
    """Inject these once, all at the same time."""

    async def plan(injector: Injector) -> None:
        async with asyncio.TaskGroup() as group:
            for fault in injector.named(kinds):
                group.create_task(injector.inject(fault, seconds))

    return plan


def at_random(
    seconds: float, longest: float, kinds: Sequence[str] = (), pauses: tuple[float, float] = (0.5, 3.0)
) -> Plan:
    """Draw faults (of these kinds, if any are named) for so many seconds, now and then two of different parts.

    `longest` (seconds) bounds each, and `pauses` the time between them.
    """

    async def plan(injector: Injector) -> None:
        dice = injector.dice
        faults = injector.named(kinds)
        deadline = time.monotonic() + seconds
        deck: list[Fault] = []
        while time.monotonic() < deadline:
            # As from a deck of cards: none comes again before each has come once.
            deck = deck or dice.sample(faults, len(faults))
            first = deck.pop()
            others = [fault for fault in faults if fault.part != first.part]
            chosen = [first, dice.choice(others)] if others and dice.random() < 0.25 else [first]
            async with asyncio.TaskGroup() as group:
                for fault in chosen:
                    group.create_task(injector.inject(fault, dice.uniform(0.2, longest), must_bite=False))
            await asyncio.sleep(dice.uniform(*pauses))

    return plan


async def chaos(
    topology: Topology, shape: Shape, seed: int, plan: Plan, tell: Callable[[Report], None] | None = None
) -> Report:
    """Start the topology, run the plan under load, stop it; `tell` hears how it goes."""
    report = Report(topology.name, seed, missing=topology.missing())
    try:
        await topology.start()
        began = time.monotonic()
        injector = Injector(report, topology.faults())
        enough = asyncio.Event()
        dice = random.Random(seed)
        async with clients_of(topology.addresses) as clients, _browsers(topology.http_urls, dice) as browsers:
            load = Load(clients, browsers.pages if browsers else {}, shape, dice, lambda: topology.losses)
            report.findings = load.findings
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(_watch(topology, report, began, tell))
                loading = group.create_task(load.run(enough))
                async with asyncio.timeout(_FLOW_SECONDS):
                    await load.flowing.wait()
                try:
                    await plan(injector)
                finally:
                    enough.set()
                await loading
                watching.cancel()
            if browsers:
                report.comebacks = browsers.comebacks
        for problem in topology.problems():
            report.note(problem)
        report.seconds = time.monotonic() - began
    finally:
        await topology.stop()
    return report


@asynccontextmanager
async def _browsers(urls: Sequence[str], dice: random.Random) -> "AsyncIterator[Browsers | None]":
    if not urls:
        yield None
        return
    # What they need may not be installed.
    from tests.chaos.browsers import browsers_of

    async with browsers_of(urls, dice) as browsers:
        yield browsers


async def _watch(topology: Topology, report: Report, began: float, tell: Callable[[Report], None] | None) -> None:
    while True:
        report.seconds = time.monotonic() - began
        report.memory.append((report.seconds, topology.memory()))
        if tell is not None:
            tell(report)
        await asyncio.sleep(_SAMPLE_SECONDS)
