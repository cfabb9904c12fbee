"""docs/protocol.md, "Consumer groups": members, what they are given, and how their calls end."""

import asyncio
from typing import Any

import pytest

from llmbridge.v1.bridge_service_pb2 import (
    ACKNOWLEDGEMENT_EXPLICIT,
    POSITION_BEGINNING,
    POSITION_LATEST,
    GroupMembership,
    SubscribeRequest,
)
from llmbridge.v1.stream_pb2 import StreamRef
from tests.conformance.caller import DONE, STOP, Caller, group_of, refused
from tests.conformance.incoming import Share, ack_ids

EXPLICIT: dict[str, Any] = {"acknowledgement": ACKNOWLEDGEMENT_EXPLICIT}


async def write(bridge: Caller, stream: StreamRef, texts: str, first: int = 1) -> None:
    """Store each text as an entry of its own."""
    for i, text in enumerate(texts):
        await bridge.produce(stream, text, first=first + i)


class TestTheGroup:
    async def test_is_made_by_its_first_member_from_the_start_so_that_what_was_produced_before_is_not_lost(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "abc")
        for name in ("g", "another", ""):
            member = await bridge.join(stream, name)
            await member.messages(3)
            assert member.share.text == "abc"
            await member.leave()

    async def test_a_member_may_come_before_the_stream_and_waits_for_it(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        member = await bridge.join(stream)
        await second.produce(stream, *"ab", first=1, end=STOP)
        share = await member.to_the_end()
        assert (share.text, share.completions) == ("ab", [STOP])

    async def test_remembers_its_own_place(self, bridge: Caller, second: Caller, stream: StreamRef) -> None:
        await write(bridge, stream, "ab")
        first = await bridge.join(stream, **EXPLICIT)
        assert await bridge.acknowledge(first.group, ack_ids(*await first.messages(2))) == [DONE] * 2
        await first.leave()
        await write(bridge, stream, "cd", first=3)
        later = await second.join(stream, **EXPLICIT)
        await later.messages(2)
        assert later.share.text == "cd"
        await later.leave()

    @pytest.mark.parametrize(
        ("start", "field"),
        [
            ({"position": POSITION_LATEST}, "position"),
            ({"position": POSITION_BEGINNING}, "position"),
            ({"after_cursor": "{cursor}"}, "after_cursor"),
        ],
    )
    async def test_a_cursor_or_another_position_than_earliest_is_refused(
        self, bridge: Caller, stream: StreamRef, start: dict[str, Any], field: str
    ) -> None:
        cursor = (await bridge.produce(stream, "a", first=1)).cursor
        start = {name: cursor if value == "{cursor}" else value for name, value in start.items()}
        request = SubscribeRequest(stream=stream, group=GroupMembership(name="g"), **start)
        refusal = await refused(bridge.reading(request).next())
        assert refusal.short == ("INVALID_ARGUMENT", "INVALID_FIELD", {"field": field})

    async def test_deadline_and_max_deliveries_are_fixed_when_it_is_made__0_takes_them_as_they_are(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "a")
        members = [await bridge.join(stream, ack_deadline_ms=2_000, max_deliveries=7)]
        await members[0].message()
        members += [await second.join(stream), await second.join(stream, ack_deadline_ms=2_000)]
        info = await bridge.group(group_of(stream))
        assert (info.ack_deadline_ms, info.max_deliveries) == (2_000, 7)
        differences: list[dict[str, Any]] = [{"ack_deadline_ms": 2_001}, {"max_deliveries": 6}]
        for differing in differences:
            refusal = await (await second.join(stream, wait=False, **differing)).refused()
            assert refusal.short == (
                "FAILED_PRECONDITION",
                "GROUP_SETTINGS_DIFFER",
                {"group": "g", "ack_deadline_ms": "2000", "max_deliveries": "7"},
            )
        for member in members:
            await member.leave()


class TestMessages:
    async def test_hold_entries_with_the_same_delivery_attempt_and_a_members_first_deliveries_come_in_order(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "ab")
        member = await bridge.join(stream, **EXPLICIT)
        first = await member.messages(2)
        assert await bridge.requeue(member.group, ack_ids(*first)) == [DONE] * 2
        await write(bridge, stream, "cdef", first=3)
        messages = [*first, *await member.messages(6)]
        for message in messages:
            assert len(message.ack_ids) == len(message.tokens), "one id for each entry, here of one token"
        sequences: dict[int, list[int]] = {1: [], 2: []}
        for message in messages:
            numbered = range(message.first_sequence, message.first_sequence + len(message.tokens))
            sequences[message.delivery_attempt] += numbered
        assert sequences[1] == [1, 2, 3, 4, 5, 6]
        assert sorted(sequences[2]) == [1, 2]
        await member.leave()

    async def test_each_entry_goes_to_one_member_and_is_theirs_until_it_is_settled(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        share = Share()
        members = [await caller.join(stream, share=share) for caller in (bridge, second, bridge)]
        for i in range(40):
            await second.produce(stream, f"{i},", ".", first=2 * i + 1)
        await second.produce(stream, first=81, end=STOP)
        await asyncio.gather(*(member.to_the_end() for member in members))
        assert share.text == "".join(f"{i},." for i in range(40))
        assert set(share.attempts.values()) == {1}


class TestFlowControl:
    async def test_a_member_is_given_entries_as_long_as_its_unsettled_ones_stay_within_max_outstanding_tokens(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "abcde")
        member = await bridge.join(stream, max_outstanding_tokens=2, **EXPLICIT)
        held = await member.messages(2)
        assert await member.is_quiet()
        # It is settled at whatever instance.
        await second.acknowledge(member.group, ack_ids(held[0]))
        more = await member.message()
        assert len(more.tokens) <= 2
        assert await member.is_quiet()
        await member.leave()

    async def test_within_max_outstanding_bytes(self, bridge: Caller, stream: StreamRef) -> None:
        for i in range(6):
            await bridge.produce(stream, f"{i}" * 1_000, first=i + 1)
        member = await bridge.join(stream, max_outstanding_bytes=2_500, **EXPLICIT)
        held = await member.messages(2)
        assert await member.is_quiet()
        await bridge.acknowledge(member.group, ack_ids(*held))
        await member.messages(2)
        await member.leave()

    @pytest.mark.parametrize("limit", [{"max_outstanding_tokens": 3}, {"max_outstanding_bytes": 200}], ids=str)
    async def test_an_entry_that_is_larger_by_itself_comes_alone_when_nothing_else_is_outstanding(
        self, bridge: Caller, stream: StreamRef, limit: dict[str, Any]
    ) -> None:
        await bridge.produce(stream, "a", first=1)
        await bridge.produce(stream, *["x" * 100] * 5, first=2)
        await bridge.produce(stream, "b", first=7, end=STOP)
        member = await bridge.join(stream, **limit, **EXPLICIT)
        for expected in (1, 5, 1):
            message = await member.message()
            assert len(message.tokens) == expected
            if expected != 1 or not member.share.completions:
                assert await member.is_quiet()
            await bridge.acknowledge(member.group, ack_ids(message))
        await member.to_the_end()


class TestTheEnd:
    async def test_when_sealed_delivered_and_nothing_pending_every_members_call_ends_ok_with_the_completion(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await bridge.produce(stream, "a", first=1, end=STOP)
        member = await bridge.join(stream, **EXPLICIT)
        others = [await second.join(stream, **EXPLICIT), await bridge.join(stream)]
        mine = await member.message()
        assert await others[0].is_quiet(), "something is pending"
        await bridge.acknowledge(member.group, ack_ids(mine))
        for each in (member, *others):
            share = await each.to_the_end()
            assert share.completions == [STOP]
        assert [each.share.text for each in others] == ["", ""]

    async def test_a_member_that_comes_later_gets_just_that(self, bridge: Caller, stream: StreamRef) -> None:
        await bridge.produce(stream, "a", first=1, end=STOP)
        await (await bridge.join(stream)).to_the_end()
        late = await (await bridge.join(stream)).to_the_end()
        assert (late.text, late.completions) == ("", [STOP])


class TestAcknowledgement:
    async def test_automatic__the_bridge_settles_after_a_message_was_handed_to_the_transport(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "abc")
        member = await bridge.join(stream)
        for message in await member.messages(3):
            assert list(message.ack_ids) == []
        async with asyncio.timeout(10):
            while (await bridge.group(member.group)).pending:
                await asyncio.sleep(0.02)
        await member.leave()
        another = await bridge.join(stream)
        assert await another.is_quiet()
        await another.leave()

    async def test_explicit__each_entry_is_delivered_until_a_member_has_acknowledged_it(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await bridge.produce(stream, "a", first=1, end=STOP)
        for attempt in (1, 2, 3):
            member = await (bridge, second)[attempt % 2].join(stream, **EXPLICIT)
            message = await member.message()
            assert (message.tokens[0].text, message.delivery_attempt) == ("a", attempt)
            if attempt == 3:
                assert await bridge.acknowledge(member.group, ack_ids(message)) == [DONE]
                await member.to_the_end()
            await member.leave()
        assert await bridge.letters(stream) == []
