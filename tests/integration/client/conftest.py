"""What tests of the client library alone start from: a fake bridge, and a client of it that tries again quickly."""

from collections.abc import AsyncIterator

import pytest

from llmbridge.client import Client, RetryPolicy
from tests.support.fake_bridge import FakeBridge, serving
from tests.support.whole_response import QUICK


@pytest.fixture
async def bridge() -> AsyncIterator[FakeBridge]:
    async with serving() as bridge:
        yield bridge


@pytest.fixture
def retry() -> RetryPolicy:
    return QUICK


@pytest.fixture
async def client(bridge: FakeBridge, retry: RetryPolicy) -> AsyncIterator[Client]:
    async with Client(bridge.address, retry=retry) as client:
        yield client
