"""What a long run draws: the same for the same seed, every kind in turn, and never two of one part at once."""

import asyncio
import random

import pytest

from tests.chaos.chaos import Injector, Report, UnknownFault, at_random
from tests.chaos.topology import DidNotBite, Fault

PARTS = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}
Drawn = list[tuple[str, float, int]]


async def drawn(seed: int, *, kinds: tuple[str, ...] = ()) -> tuple[Drawn, Report]:
    """Draw for a moment faults that do nothing but note themselves, and that two of one part never meet."""
    acts: Drawn = []
    active: set[str] = set()

    def fault(kind: str) -> Fault:
        async def act(dice: random.Random, seconds: float) -> None:
            assert PARTS[kind] not in active
            active.add(PARTS[kind])
            acts.append((kind, seconds, dice.getrandbits(32)))
            await asyncio.sleep(0)
            active.remove(PARTS[kind])
            if kind == "d":
                raise AssertionError("it ended with 1")
            if kind == "e":
                raise DidNotBite("nothing was there")

        return Fault(kind, PARTS[kind], act)

    report = Report("none", seed)
    injector = Injector(report, [fault(kind) for kind in PARTS])
    await at_random(0.2, longest=2.0, kinds=kinds, pauses=(0.0, 0.0))(injector)
    return acts, report


async def test_a_seed_always_draws_the_same() -> None:
    (first, _), (again, _), (other, _) = [await drawn(seed) for seed in (1, 1, 2)]
    length = min(len(first), len(again), len(other), 50)
    assert length == 50
    assert first[:length] == again[:length] != other[:length]


async def test_every_kind_comes_and_some_at_the_same_time() -> None:
    acts, report = await drawn(3)
    assert {kind for kind, _, _ in acts[:10]} == set(PARTS)
    assert all(0.2 <= seconds <= 2.0 for _, seconds, _ in acts)
    assert report.faults.total() == len(acts)
    assert len(report.harmless) == report.faults["e"]
    assert report.findings.violations == len(report.findings.problems) == report.faults["d"]


async def test_only_the_kinds_that_are_named() -> None:
    acts, _ = await drawn(4, kinds=("a", "c"))
    assert {kind for kind, _, _ in acts} == {"a", "c"}


async def test_a_kind_that_is_not_there_is_told() -> None:
    with pytest.raises(UnknownFault, match="no fault 'f' here; there are: a; b; c; d; e"):
        await drawn(5, kinds=("a", "f"))
