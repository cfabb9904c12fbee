"""`groups …` and `dead-letters …` as processes of their own, against a real bridge."""

from collections.abc import AsyncIterator

import pytest

from llmbridge.groups.places import AckId
from llmbridge.log.groups import GroupSettings, History, Receipt, Verb
from llmbridge.model.names import StreamName
from llmbridge.v1 import group_service_pb2 as pb
from tests.support.calls import ref
from tests.support.command import Done, run
from tests.support.log_parts import LogParts, log_parts
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

NOWHERE = "127.0.0.1:1"
NAME = StreamName("s", "m", "r [b] é")
STREAM = ("s", "m", "--response", NAME.response_id)


@pytest.fixture
async def parts(bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(shared_redis.url, key_prefix, partitions=bridge.settings.partitions) as running:
        yield running


async def delivered(parts: LogParts, group: str = "g") -> list[Receipt]:
    """Give all of the stream to a member of the group."""
    place = parts.place(NAME, group)
    await parts.groups.join(place, GroupSettings(60_000, 3), History.REFUSE)
    share = await parts.groups.read(place, "worker 1", 100, ())
    return [Receipt(entry_id, 1) for entry_id, _ in share.entries]


async def test_the_groups_of_a_stream(bridge: RunningBridge, parts: LogParts) -> None:
    at = ("--address", bridge.address)
    await parts.append_tokens(NAME, 1, 2)
    assert await run("groups", "list", *STREAM, *at) == Done(0, "", "llmbridge: there is no group\n")
    await delivered(parts)
    await parts.append_tokens(NAME, 5, first=4)
    await parts.groups.join(parts.place(NAME, "other"), GroupSettings(0, 0), History.REFUSE)

    listed = await run("groups", "list", *STREAM, *at)
    assert (listed.code, listed.err) == (0, "")
    assert [row[:4] for row in listed.rows] == [["g", "1", "2", "5"], ["other", "0", "0", "8"]]
    assert [row[6:] for row in listed.rows] == [["60000", "3", "3"], ["30000", "5", "0"]]
    (shown,) = (await run("groups", "show", *STREAM, "--group", "g", "--json", *at)).objects
    assert (shown["name"], shown["pending"], shown["lag"], shown["maxDeliveries"]) == ("g", "2", "5", 3)
    (row,) = (await run("groups", "show", *STREAM, "--group", "other", *at)).rows
    assert row[:2] == ["other", "0"]

    (consumer,) = (await run("groups", "consumers", *STREAM, "--group", "g", *at)).rows
    assert consumer[:2] == ["worker 1", "2"]
    nobody = await run("groups", "consumers", *STREAM, "--group", "other", *at)
    assert nobody == Done(0, "", "llmbridge: the group has no consumer\n")

    deleted = await run("groups", "delete", *STREAM, "--group", "g", *at)
    assert deleted == Done(0, "", f"llmbridge: deleted g of s/m/{NAME.response_id}\n")
    for command in ("show", "consumers", "delete"):
        gone = await run("groups", command, *STREAM, "--group", "g", *at)
        assert (gone.code, gone.out) == (5, "")
        assert gone.err.startswith("llmbridge: there is no group 'g'")
    unknown = await run("groups", "list", "s", "nothing", *at)
    assert (unknown.code, unknown.out) == (5, "")


async def test_the_groups_of_the_feed(bridge: RunningBridge) -> None:
    at = ("--address", bridge.address)
    assert await run("groups", "list", "--lifecycle", *at) == Done(0, "", "llmbridge: there is no group\n")
    gone = await run("groups", "show", "--lifecycle", *at)
    assert (gone.code, gone.out) == (5, "")
    assert gone.err.startswith("llmbridge: there is no group 'llmbridge'")


@pytest.mark.parametrize("log", [(), ("s",), ("s", "m", "--lifecycle"), ("--lifecycle", "--response", "r"), ("", "m")])
async def test_a_group_is_of_a_stream_or_of_the_feed(log: tuple[str, ...]) -> None:
    done = await run("groups", "show", *log, "--address", NOWHERE)
    assert (done.code, done.err) == (2, "llmbridge: give either SESSION and MODEL, or --lifecycle\n")


async def test_dead_letters(bridge: RunningBridge, parts: LogParts) -> None:
    at = ("--address", bridge.address)
    assert await run("dead-letters", "list", *at) == Done(0, "", "llmbridge: there is no dead letter\n")
    await parts.append_tokens(NAME, 1, 1, 1)
    receipts = await delivered(parts)
    assert all(await parts.groups.settle(parts.place(NAME, "g"), Verb.BURY, receipts, "so\tit\ngoes \x1b[2J"))

    listed = await run("dead-letters", "list", *at)
    assert (listed.code, listed.err) == (0, "")
    ids = [row[0] for row in listed.rows]
    assert [row[1:5] for row in listed.rows] == [["s", "m", NAME.response_id, "g"]] * 3
    assert [row[6:8] for row in listed.rows] == [["1", "so it goes \u241b[2J"]] * 3
    assert {row[10] for row in listed.rows} == {"worker 1"}
    some = await run("dead-letters", "list", *STREAM, "--limit", "1", "--json", *at)
    assert [(one["id"], one["reason"]) for one in some.objects] == [(ids[0], "so\tit\ngoes \x1b[2J")]
    assert some.err == "llmbridge: only the first 1 are shown; --limit shows more\n"
    other = await run("dead-letters", "list", "s", "other", *at)
    assert (other.code, other.out) == (0, "")

    redriven = await run("dead-letters", "redrive", *ids[:2], *at)
    assert redriven == Done(0, "", "llmbridge: redriven: 2 of 2\n")
    acknowledge = pb.AcknowledgeRequest(
        group=pb.GroupRef(stream=ref(NAME.response_id), name="g"),
        ack_ids=[str(AckId(None, receipt)) for receipt in receipts],
    )
    assert list((await bridge.groups.Acknowledge(acknowledge)).results) == [
        pb.SETTLE_RESULT_DONE,
        pb.SETTLE_RESULT_DONE,
        pb.SETTLE_RESULT_NOT_PENDING,
    ]
    again = await run("dead-letters", "redrive", *ids, *at)
    assert again == Done(5, f"{ids[0]}\n{ids[1]}\n", "llmbridge: redriven: 1 of 3\n")

    deleted = await run("dead-letters", "delete", ids[2], *at)
    assert deleted == Done(0, "", "llmbridge: deleted: 0 of 1\n")
    refused = await run("dead-letters", "delete", "nonsense", *at)
    assert refused.code == 2
    assert refused.err.startswith("llmbridge: ids[0]: not an id of a dead letter")


@pytest.mark.parametrize("arguments", [("s",), ("--response", "r")])
async def test_dead_letters_of_half_a_stream(arguments: tuple[str, ...]) -> None:
    done = await run("dead-letters", "list", *arguments, "--address", NOWHERE)
    assert (done.code, done.err) == (2, "llmbridge: give both SESSION and MODEL, or neither\n")
