"""What a chaos run needs of the thing it hurts: start and stop it, its addresses, and the faults that it offers.

A topology is processes and links between them: bridges, gateways, and whatever Redis is to them. The load, the judge
and the run know no more of it than this.
"""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class DidNotBite(Exception):
    """A fault was carried out, and nothing of it could be seen; which may be where two meet."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to hurt a topology. `act(dice, seconds)` begins it, lets it last about so long, and ends it.

    When it returns, what it hurt works again, or is about to by itself. It raises DidNotBite; AssertionError if what
    it hurt did not take it as it must. Two faults with different `part`s may be carried out at the same time.
    """

    kind: str
    part: str
    act: Callable[[random.Random, float], Awaitable[None]]


class Topology(Protocol):
    """Bridges on some Redis, and gateways to them, running between `start` and `stop`."""

    name: str

    async def start(self) -> None:
        """Start everything, and return when all bridges serve."""

    async def stop(self) -> None:
        """End everything, whatever state it is in."""

    @property
    def addresses(self) -> Sequence[str]:
        """Addresses for clients, one each: every one names all bridges, each beginning with another."""

    @property
    def http_urls(self) -> Sequence[str]:
        """Where browsers find gateways; none where what HTTP needs is not installed."""

    @property
    def losses(self) -> int:
        """How often Redis has lost acknowledged data so far, as its settings allow."""

    def faults(self) -> Sequence[Fault]:
        """What can be done to it on this machine."""

    def missing(self) -> Mapping[str, str]:
        """The kinds of faults that this machine lacks a tool for, each with the reason."""

    def problems(self) -> Sequence[str]:
        """What went wrong with it that no fault did, such as processes that ended by themselves."""

    def memory(self) -> dict[str, int]:
        """Resident bytes of each kind of process, added up: `bridges`, `gateways`, `redis`."""
