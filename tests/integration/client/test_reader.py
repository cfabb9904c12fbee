"""The reader against a bridge that fails: every record, once, in order, with an end, or an error that says why not."""

import asyncio
import contextlib

import grpc
import pytest

from llmbridge.client import (
    BridgeFailure,
    Client,
    ClientClosed,
    ClientError,
    LimitExceeded,
    Message,
    RetryPolicy,
    Unavailable,
)
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault
from tests.support.whole_response import QUICK, WORDS, check_whole, read, whole

UNKNOWN_TRANSPORT = Fault(code=grpc.StatusCode.UNKNOWN, message="Stream removed")


async def test_a_whole_response_is_read_to_its_end(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    subscription = client.subscribe(*KEY)
    messages = await read(subscription)
    check_whole(messages)
    assert messages[-1].cursor == subscription.cursor == bridge.log.cursor(13)
    assert messages[-1].appended_ms == 1_700_000_000_013
    assert subscription.completion is not None
    assert [message async for message in subscription] == []
    await bridge.until(lambda: bridge.readers == 0)
    assert bridge.endings == ["served"]
    assert len(bridge.subscribed) == 1


async def test_a_stream_is_waited_for_and_followed(bridge: FakeBridge, client: Client) -> None:
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read(client.subscribe(*KEY)))
        await bridge.until(lambda: bridge.readers == 1)
        for word in WORDS:
            bridge.append(word)
            await asyncio.sleep(0)
        bridge.seal()
    check_whole(reading.result())


@pytest.mark.parametrize("after", range(14))
@pytest.mark.parametrize("fault", [Fault("DRAINING"), Fault(code=grpc.StatusCode.UNAVAILABLE), UNKNOWN_TRANSPORT])
async def test_a_cut_anywhere_loses_and_repeats_nothing(
    bridge: FakeBridge, client: Client, fault: Fault, after: int
) -> None:
    whole(bridge)
    cut = Fault(fault.reason, fault.code, fault.message, after_records=after)
    bridge.subscribe_faults.append(cut)
    check_whole(await read(client.subscribe(*KEY)))
    # A cut after the completion is none.
    cursors = ["", bridge.log.cursor(after) if after else ""][: 1 if after == 13 else 2]
    assert [request.after_cursor for request in bridge.subscribed] == cursors


async def test_many_cuts(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    for after in (0, 3, 0, 0, 1, 1, 5, 0):
        bridge.subscribe_faults.append(Fault("DRAINING", after_records=after, retry_delay=0.001))
    check_whole(await read(client.subscribe(*KEY)))
    assert len(bridge.subscribed) == 9


async def test_broken_connections_are_made_again(bridge: FakeBridge, client: Client) -> None:
    bridge.append(*WORDS[:5])
    subscription = client.subscribe(*KEY)
    messages = [await anext(subscription)]
    for words in (WORDS[5:6], WORDS[6:]):
        await bridge.stop()
        bridge.append(*words)
        await bridge.start()
        messages.append(await anext(subscription))
    await bridge.stop()
    bridge.seal()
    await bridge.start()
    messages.extend(await read(subscription))
    check_whole(messages)


async def test_a_bridge_that_is_down_is_waited_for(bridge: FakeBridge, client: Client) -> None:
    await bridge.stop()
    reading = asyncio.create_task(read(client.subscribe(*KEY)))
    await asyncio.sleep(0.1)
    await bridge.start()
    whole(bridge)
    check_whole(await reading)


async def test_heartbeats_are_hidden_and_keep_the_call_alive(bridge: FakeBridge, client: Client) -> None:
    bridge.heartbeat = 0.1
    reading = asyncio.create_task(read(client.subscribe(*KEY, silence_timeout=0.5)))
    await bridge.until(lambda: bridge.beats == 8)
    bridge.append(*WORDS)
    await bridge.until(lambda: bridge.beats == 16)
    bridge.seal()
    check_whole(await reading)
    assert len(bridge.subscribed) == 1


async def test_a_connection_without_a_sign_of_life_is_given_up(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    bridge.subscribe_faults.extend([Fault(hang=True), Fault(hang=True, after_records=4)])
    check_whole(await read(client.subscribe(*KEY, silence_timeout=0.3)))
    assert len(bridge.subscribed) >= 3
    await bridge.until(lambda: bridge.readers == 0)
    assert bridge.endings[:2] == ["cancelled", "cancelled"]


async def test_a_slow_consumer_is_no_silence(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    messages = []
    async for message in client.subscribe(*KEY, silence_timeout=0.5):
        messages.append(message)
        if len(messages) == 1:
            await asyncio.sleep(0.8)
    check_whole(messages)
    assert len(bridge.subscribed) == 1


async def test_every_success_ends_an_outage(bridge: FakeBridge) -> None:
    """Neither the time that an outage may last nor the growing waits go on from one outage to the next."""
    clock = asyncio.get_running_loop().time
    began = clock()
    retry = RetryPolicy(first_delay=0.01, longest_delay=20, multiplier=10)
    bridge.subscribe_faults.extend([Fault("DRAINING", after_records=1)] * 8)
    messages: list[Message] = []
    async with Client(bridge.address, retry=retry) as client:
        subscription = client.subscribe(*KEY, retry_for=1.0)
        for word in WORDS[:8]:
            bridge.append(word)
            messages.append(await anext(subscription))
            await asyncio.sleep(0.2)
        bridge.append(*WORDS[8:])
        bridge.seal()
        messages.extend(await read(subscription))
    check_whole(messages)
    assert 1.6 < clock() - began < 5


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("LIMIT_EXCEEDED"), LimitExceeded),
        (Fault("INTERNAL"), BridgeFailure),
        (Fault(code=grpc.StatusCode.UNKNOWN, message="Unexpected <class 'KeyError'>"), BridgeFailure),
        (Fault(code=grpc.StatusCode.UNIMPLEMENTED), BridgeFailure),
    ],
)
async def test_other_failures_are_told_at_once(
    bridge: FakeBridge, client: Client, fault: Fault, kind: type[ClientError]
) -> None:
    bridge.append("a")
    bridge.subscribe_faults.append(fault)
    with pytest.raises(kind):
        await read(client.subscribe(*KEY))
    assert len(bridge.subscribed) == 1


async def test_an_outage_may_last_so_long(bridge: FakeBridge, client: Client) -> None:
    clock = asyncio.get_running_loop().time
    await bridge.stop()
    subscription = client.subscribe(*KEY, retry_for=0.3)
    for _ in range(2):
        began = clock()
        with pytest.raises(Unavailable):
            await anext(subscription)
        assert 0.2 < clock() - began < 5
    await bridge.start()
    whole(bridge)
    messages: list[Message] = []
    async with asyncio.timeout(10):
        while subscription.completion is None:
            # grpc has its own pause between two attempts to connect, so that this may take more than one.
            with contextlib.suppress(Unavailable):
                messages.append(await anext(subscription))
    check_whole(messages)


async def test_without_retries_the_first_failure_is_told(bridge: FakeBridge, client: Client) -> None:
    bridge.subscribe_faults.append(Fault("DRAINING"))
    with pytest.raises(Unavailable):
        await anext(client.subscribe(*KEY, retry_for=0))
    assert len(bridge.subscribed) == 1


async def test_quiet_times_do_not_count_as_an_outage(bridge: FakeBridge, client: Client) -> None:
    """The time is counted from the first failure after the last success, and not from the last message."""
    bridge.append(*WORDS)
    subscription = client.subscribe(*KEY, retry_for=2.0)
    messages: list[Message] = []
    while not messages or messages[-1].last_sequence < 12:
        messages.append(await anext(subscription))
    last = asyncio.create_task(anext(subscription))
    await asyncio.sleep(2.2)
    await bridge.stop()
    await bridge.start()
    bridge.seal()
    messages.append(await last)
    check_whole(messages)


async def test_a_cancelled_anext_loses_nothing(bridge: FakeBridge, client: Client) -> None:
    subscription = client.subscribe(*KEY)
    messages: list[Message] = []

    async def produce() -> None:
        for word in WORDS:
            await asyncio.sleep(0.02)
            bridge.append(word)
        bridge.seal()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(produce())
        wait = 0.0
        while not messages or messages[-1].completion is None:
            wait = (wait + 0.003) % 0.03
            try:
                async with asyncio.timeout(wait):
                    messages.append(await anext(subscription))
            except TimeoutError:
                continue
    check_whole(messages)
    assert len(bridge.subscribed) == 1


async def test_cancellation_passes_through(bridge: FakeBridge, client: Client) -> None:
    task = asyncio.create_task(read(client.subscribe(*KEY)))
    await bridge.until(lambda: bridge.readers == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bridge.until(lambda: bridge.readers == 0)
    assert bridge.endings == ["cancelled"]


async def test_leaving_early_ends_the_subscription(bridge: FakeBridge, client: Client) -> None:
    bridge.append(*WORDS)
    async with client.subscribe(*KEY) as subscription:
        async for _ in subscription:
            break
        assert bridge.readers == 1
    await bridge.until(lambda: bridge.readers == 0)
    bridge.seal()
    rest = await read(subscription)
    assert rest[-1].completion is not None


async def test_a_forgotten_subscription_ends(bridge: FakeBridge, client: Client) -> None:
    bridge.append(*WORDS)
    async for _ in client.subscribe(*KEY):
        break
    await bridge.until(lambda: bridge.readers == 0)


async def test_closing_the_client_ends_its_readers(bridge: FakeBridge) -> None:
    async with Client(bridge.address, retry=QUICK) as client:
        subscription = client.subscribe(*KEY)
        task = asyncio.create_task(read(subscription))
        await bridge.until(lambda: bridge.readers == 1)
    with pytest.raises(ClientClosed):
        await task
    with pytest.raises(ClientClosed):
        await anext(subscription)


async def test_one_task_reads(bridge: FakeBridge, client: Client) -> None:
    subscription = client.subscribe(*KEY)
    task = asyncio.create_task(read(subscription))
    await bridge.until(lambda: bridge.readers == 1)
    with pytest.raises(RuntimeError, match="one task"):
        await anext(subscription)
    whole(bridge)
    check_whole(await task)
