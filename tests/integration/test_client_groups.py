"""What the client offers of groups: over replies that are lost and many ids (a fake bridge), and against a real one."""

from collections.abc import AsyncIterator

import pytest

from llmbridge.client import Client, GroupName, GroupNotFound, InvalidRequest, RetryPolicy, StreamName, StreamNotFound
from llmbridge.groups.places import AckId
from llmbridge.log.groups import GroupSettings, History, Receipt
from llmbridge.v1 import group_service_pb2 as pb
from tests.support.calls import ref
from tests.support.fake_bridge import FakeBridge, serving
from tests.support.faults import Fault
from tests.support.log_parts import log_parts
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02)
LOST_REPLY = Fault("APPEND_OUTCOME_UNKNOWN", after_storing=True)
DOWN = Fault("REDIS_UNAVAILABLE")
NAME = StreamName("s", "m", "r")
GROUP = GroupName(NAME, "g")
FEED = GroupName(None, "g")


@pytest.fixture
async def fake() -> AsyncIterator[FakeBridge]:
    async with serving() as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeBridge) -> AsyncIterator[Client]:
    async with Client(fake.address, retry=QUICK) as client:
        yield client


def test_how_a_group_is_named() -> None:
    assert GROUP.ref == pb.GroupRef(stream=ref("r"), name="g")
    assert FEED.ref == pb.GroupRef(lifecycle=pb.LifecycleFeed(), name="g")
    assert GroupName(None).ref == pb.GroupRef(lifecycle=pb.LifecycleFeed())


async def test_many_ids_go_in_several_requests(fake: FakeBridge, client: Client) -> None:
    ids = [str(i) for i in range(2_500)]
    fake.groups.pending = set(ids[1:])
    expected = [False] + [True] * 2_499
    assert await client.groups.extend(GROUP, ids) == expected
    assert await client.groups.reject(GROUP, ids) == expected
    assert await client.groups.acknowledge(GROUP, ids) == expected
    fake.groups.letters = ids[1:]
    assert await client.groups.redrive(ids) == expected
    fake.groups.letters = ids[1:]
    assert await client.groups.delete_dead_letters(ids) == 2_499
    assert fake.groups.sizes == [1_000, 1_000, 500] * 5
    assert await client.groups.acknowledge(GROUP, []) == []
    assert len(fake.groups.sizes) == 15


async def test_looking_is_repeated_until_it_is_answered(fake: FakeBridge, client: Client) -> None:
    fake.groups.pending = {"1"}
    fake.groups.faults.extend([DOWN, LOST_REPLY])
    assert (await client.groups.get(GROUP)).pending == 1
    fake.groups.faults.append(LOST_REPLY)
    assert [info.name for info in await client.groups.of_log(None)] == ["g"]
    fake.groups.faults.append(DOWN)
    assert [consumer.pending for consumer in await client.groups.consumers(GROUP)] == [1]


async def test_settling_is_repeated_until_it_is_answered(fake: FakeBridge, client: Client) -> None:
    fake.groups.pending = {"1", "2"}
    fake.groups.faults.append(DOWN)
    assert await client.groups.acknowledge(GROUP, ["1"]) == [True]
    fake.groups.faults.append(LOST_REPLY)
    # What the lost reply said can't be known any more; it is done all the same.
    assert await client.groups.acknowledge(GROUP, ["2"]) == [False]
    assert fake.groups.pending == set()


async def test_deleting_a_group_survives_a_lost_reply(fake: FakeBridge, client: Client) -> None:
    fake.groups.faults.append(LOST_REPLY)
    await client.groups.delete(GROUP)
    with pytest.raises(GroupNotFound):
        await client.groups.delete(GROUP)


async def test_all_pages_are_fetched(fake: FakeBridge, client: Client) -> None:
    fake.groups.letters = [str(i) for i in range(5)]
    fake.groups.faults.extend([DOWN, DOWN])
    assert [one.id async for one in client.groups.dead_letters(page_size=2)] == ["0", "1", "2", "3", "4"]


async def test_against_a_real_bridge(bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str) -> None:
    partitions = bridge.settings.partitions
    async with (
        Client(bridge.address) as client,
        log_parts(shared_redis.url, key_prefix, partitions=partitions) as parts,
    ):
        with pytest.raises(StreamNotFound):
            await client.groups.of_log(NAME)
        with pytest.raises(GroupNotFound):
            await client.groups.get(GROUP)
        with pytest.raises(GroupNotFound):
            await client.groups.get(FEED)
        async with client.write(NAME) as writer:
            for text in ("a", "b", "c"):
                await writer.text(text)
                await writer.flush()
        place = parts.place(NAME, "g")
        await parts.groups.join(place, GroupSettings(0, 0), History.REFUSE)
        share = await parts.groups.read(place, "worker", 3, ())
        one, two, three = [str(AckId(None, Receipt(entry_id, 1))) for entry_id, _ in share.entries]

        [info] = await client.groups.of_log(NAME)
        assert (info.name, info.consumers, info.pending, info.lag, info.delivered_sequence) == ("g", 1, 3, 0, 3)
        assert [(consumer.name, consumer.pending) for consumer in await client.groups.consumers(GROUP)] == [
            ("worker", 3)
        ]
        assert await client.groups.acknowledge(GROUP, [one, one]) == [True, False]
        assert await client.groups.extend(GROUP, [one, two]) == [False, True]
        assert await client.groups.reject(GROUP, [two]) == [True]
        assert await client.groups.reject(GROUP, [three], dead_letter=True, reason="broken") == [True]
        assert (await client.groups.get(GROUP)).pending == 1
        with pytest.raises(InvalidRequest) as refused:
            await client.groups.acknowledge(FEED, [one])
        assert refused.value.field == "ack_ids[0]"

        [letter] = [letter async for letter in client.groups.dead_letters(NAME)]
        assert (letter.group, letter.reason) == (GROUP.ref, "broken")
        assert [other async for other in client.groups.dead_letters(StreamName("x", "y"))] == []
        assert await client.groups.redrive([letter.id, letter.id.replace("-", "0-")]) == [True, False]
        assert (await client.groups.get(GROUP)).pending == 2
        assert await client.groups.delete_dead_letters([letter.id]) == 0

        await client.groups.delete(GROUP)
        assert await client.groups.of_log(NAME) == []
