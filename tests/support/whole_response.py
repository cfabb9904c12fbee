"""A whole response in a fake bridge, and the check that a reader got all of it."""

from llmbridge.client import FinishReason, Message, RetryPolicy, Subscription
from tests.support.fake_bridge import FakeBridge

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02)
WORDS = [f"w{number} " for number in range(12)]
TEXT = "".join(WORDS)


def whole(bridge: FakeBridge) -> None:
    """Put a whole response into the bridge."""
    bridge.append(*WORDS)
    bridge.seal()


async def read(subscription: Subscription) -> list[Message]:
    return [message async for message in subscription]


def check_whole(messages: list[Message]) -> None:
    assert "".join(message.text for message in messages) == TEXT
    assert [message.finish_reason for message in messages[:-1]] == [None] * (len(messages) - 1)
    assert messages[-1].finish_reason is FinishReason.STOP
    expected = 1
    for message in messages:
        assert message.first_sequence == expected
        expected = message.last_sequence + 1
