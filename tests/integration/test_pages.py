"""Pages are bounded in bytes, whatever the mixture of large and small entries."""

import pytest

from llmbridge.log.reading import PAGE_BYTES
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from tests.support.calls import STOP, attached, produce, ref
from tests.support.running_bridge import RunningBridge

STREAM = ref()
LARGE = "x" * 60_000


@pytest.mark.parametrize("large_at", [(0,), (150,), (299,), (0, 1, 2, 3, 4, 5, 6, 7, 8, 150)], ids=str)
async def test_large_entries_do_not_make_small_ones_come_one_by_one(
    bridge: RunningBridge, large_at: tuple[int, ...]
) -> None:
    texts = [LARGE if i in large_at else str(i) for i in range(300)]
    for i, text in enumerate(texts):
        await produce(bridge.bridge, STREAM, text, first=i + 1)
    await produce(bridge.bridge, STREAM, first=301, completion=STOP)

    call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
    messages = [message async for message in call]

    assert [token.text for message in messages for token in message.tokens] == texts
    assert len(messages) <= 12
    assert max(message.ByteSize() for message in messages) < PAGE_BYTES + 1_000
