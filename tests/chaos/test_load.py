"""The chaos run's load flows on its own, however short its streams and however late they are acknowledged."""

import asyncio
import random

from tests.chaos.load import Load, Shape
from tests.chaos.ways import clients_of
from tests.support.calls import PATIENCE_SECONDS
from tests.support.running_bridge import RunningBridge


async def test_streams_that_are_acknowledged_only_at_their_end_flow(bridge: RunningBridge) -> None:
    enough = asyncio.Event()
    async with clients_of([bridge.address]) as clients:
        shape = Shape(at_once=3, batches=(1, 1), pace=0.0, latest=0.1)
        load = Load(clients, {}, shape, random.Random(), lambda: 0)
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(load.run(enough))
            await load.flowing.wait()
            enough.set()
    assert load.findings.violations == 0
    assert load.findings.streams >= shape.at_once
