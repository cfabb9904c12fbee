"""docs/protocol.md, "Consumer groups": the table of what becomes of unsettled entries, settling, and dead letters.

What becomes of them when the bridge is drained or killed, or Redis goes, is in test_faults.py.
"""

import asyncio
from typing import Any

import pytest

from llmbridge.v1.bridge_service_pb2 import ACKNOWLEDGEMENT_EXPLICIT, POSITION_EARLIEST
from llmbridge.v1.group_service_pb2 import REDRIVE_RESULT_DONE, REDRIVE_RESULT_GONE, AcknowledgeRequest
from llmbridge.v1.stream_pb2 import StreamRef
from tests.conformance.caller import DONE, NOT_PENDING, STOP, Caller, group_of, new_stream, refused
from tests.conformance.conftest import Connect
from tests.conformance.incoming import Share, ack_ids
from tests.conformance.transport import CallFailed

EXPLICIT: dict[str, Any] = {"acknowledgement": ACKNOWLEDGEMENT_EXPLICIT}
SHORT: dict[str, Any] = {**EXPLICIT, "ack_deadline_ms": 400}


async def write(bridge: Caller, stream: StreamRef, texts: str, first: int = 1) -> list[str]:
    """Store each text as an entry of its own; returns the cursors."""
    return [(await bridge.produce(stream, text, first=first + i)).cursor for i, text in enumerate(texts)]


class TestWhatHappens:
    async def test_the_deadline_passes__they_go_to_the_next_member_with_room_and_the_firsts_acknowledgement_counts(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await bridge.produce(stream, "a", first=1, end=STOP)
        first = await bridge.join(stream, max_outstanding_tokens=1, **SHORT)
        mine = await first.message()
        another = await second.join(stream, **SHORT)
        again = await another.message()
        assert (again.tokens[0].text, again.delivery_attempt) == ("a", 2)
        assert list(again.ack_ids) != list(mine.ack_ids)
        assert await bridge.acknowledge(first.group, ack_ids(mine)) == [DONE]
        assert await second.acknowledge(first.group, ack_ids(again)) == [NOT_PENDING]
        for member in (first, another):
            assert (await member.to_the_end()).completions == [STOP]

    async def test_a_member_leaves__given_back_at_once_the_attempt_counted(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "a")
        first = await bridge.join(stream, **EXPLICIT)
        await first.message()
        another = await second.join(stream, **EXPLICIT)
        assert await another.is_quiet()
        await first.leave()
        # The deadline is 30 s.
        assert (await another.message(10)).delivery_attempt == 2
        await another.leave()

    @pytest.mark.parametrize("explicit", [False, True], ids=["automatic", "explicit"])
    async def test_a_worker_is_killed__given_back_at_once(
        self, bridge: Caller, connect: Connect, stream: StreamRef, explicit: bool
    ) -> None:
        settings = EXPLICIT if explicit else {}
        worker = await connect(bridge.instance)
        await worker.join(stream, **settings)
        another = await bridge.join(stream, **settings)
        await write(bridge, stream, "0123456789")
        if explicit:
            async with asyncio.timeout(10):
                while (await bridge.group(group_of(stream))).pending < 10:
                    await asyncio.sleep(0.02)
        await worker.transport.close()
        await bridge.produce(stream, first=11, end=STOP)
        if explicit:
            while len(another.share.attempts) < 10:
                await bridge.acknowledge(another.group, ack_ids(await another.message(10)))
            assert (await another.to_the_end()).text == "0123456789"
        else:
            # What the broken connection swallowed is gone for the group, and nobody waits for it.
            share = await another.to_the_end()
            assert share.completions == [STOP]

    async def test_max_deliveries_is_reached__it_becomes_a_dead_letter(self, bridge: Caller, stream: StreamRef) -> None:
        [cursor] = await write(bridge, stream, "a")
        await bridge.produce(stream, first=2, end=STOP)
        share = Share()
        for attempt in (1, 2):
            member = await bridge.join(stream, max_deliveries=2, share=share, **SHORT)
            last = await member.message()
            assert last.delivery_attempt == attempt
            if attempt == 1:
                await member.leave()
        await member.to_the_end()
        assert share.attempts == {1: 2}
        [letter] = await bridge.letters(stream)
        assert (letter.reason, letter.attempts, letter.cursor) == ("max_deliveries", 2, cursor)
        # Together with its acknowledgement: it is not pending any more.
        assert await bridge.acknowledge(member.group, ack_ids(last)) == [NOT_PENDING]

    async def test_they_are_trimmed_away_while_pending__dead_letter_trimmed_when_their_deadline_passes(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "abc")
        member = await bridge.join(stream, **SHORT)
        await member.messages(3)
        await bridge.trim(stream, keep_tokens=1)
        await bridge.produce(stream, first=4, end=STOP)
        again = await member.message()
        assert (again.tokens[0].text, again.delivery_attempt) == ("c", 2)
        await bridge.acknowledge(member.group, ack_ids(again))
        assert (await member.to_the_end()).completions == [STOP]
        letters = await bridge.letters(stream)
        assert [(letter.reason, letter.attempts) for letter in letters] == [("trimmed", 1)] * 2

    async def test_entries_are_trimmed_away_that_no_member_ever_got__trimmed_until_one_joins_with_earliest(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "abcde")
        member = await bridge.join(stream, max_outstanding_tokens=1, **EXPLICIT)
        held = await member.message()
        await bridge.trim(stream, keep_tokens=2)
        assert await bridge.acknowledge(member.group, ack_ids(held)) == [DONE]
        joining = [await bridge.join(stream, wait=False, **EXPLICIT) for _ in range(2)]
        for each in (member, *joining):
            refusal = await each.refused()
            assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "TRIMMED")
            left = await bridge.subscribe(stream, last=3, after_cursor=refusal.metadata["earliest_cursor"])
            assert (await left.through(5)).text == "de"
            await left.leave()
        accepting = await bridge.join(stream, position=POSITION_EARLIEST, **EXPLICIT)
        await bridge.acknowledge(member.group, ack_ids(*await accepting.messages(2)))
        assert accepting.share.text == "de"
        after = await bridge.join(stream, **EXPLICIT)
        assert await after.is_quiet()
        for each in (accepting, after):
            await each.leave()

    @pytest.mark.parametrize("how", ["deleted", "expires", "made anew"])
    async def test_the_stream_is_deleted_expires_or_is_made_anew__members_get_expired_or_restarted(
        self, bridge: Caller, second: Caller, stream: StreamRef, how: str
    ) -> None:
        await bridge.create(stream, retention_ms=1_000 if how == "expires" else 0)
        await write(bridge, stream, "a")
        member = await second.join(stream, **EXPLICIT)
        await member.message()
        if how != "expires":
            await bridge.delete(stream)
        if how == "made anew":
            await write(bridge, stream, "b")
        refusal = await member.refused()
        assert refusal.code == "OUT_OF_RANGE"
        assert refusal.reason in (("RESTARTED", "EXPIRED") if how == "made anew" else ("EXPIRED",))
        if how != "made anew":
            gone = await refused(bridge.group(member.group))
            assert gone.short == ("NOT_FOUND", "GROUP_NOT_FOUND", {"group": "g"})

    async def test_the_stream_is_made_anew__the_group_is_gone_with_the_old_one(
        self, bridge: Caller, second: Caller
    ) -> None:
        # Who wins the race with a member is chance: of so many some lose it.
        async def has_its_group(stream: StreamRef) -> bool:
            await write(bridge, stream, "a")
            member = await second.join(stream, **EXPLICIT)
            await member.message()
            await bridge.delete(stream)
            await write(bridge, stream, "b")
            assert (await member.refused()).code == "OUT_OF_RANGE"
            try:
                await bridge.group(member.group)
            except CallFailed as failed:
                return failed.refusal.reason != "GROUP_NOT_FOUND"
            return True

        # Nobody has joined on the new streams.
        for at_once in (*[1] * 20, *[20] * 3):
            assert not any(await asyncio.gather(*(has_its_group(new_stream()) for _ in range(at_once))))

    async def test_delete_group__members_get_group_not_found_and_the_next_makes_a_new_one_from_the_start(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "a")
        members = [await caller.join(stream, **EXPLICIT) for caller in (bridge, second)]
        await write(bridge, stream, "b", first=2)
        await second.delete_group(group_of(stream))
        for member in members:
            refusal = await member.refused()
            assert refusal.short == ("NOT_FOUND", "GROUP_NOT_FOUND", {"group": "g"})
        assert (await refused(second.delete_group(group_of(stream)))).reason == "GROUP_NOT_FOUND"
        new = await bridge.join(stream, **EXPLICIT)
        assert {message.delivery_attempt for message in await new.messages(2)} == {1}
        assert new.share.text == "ab"
        await new.leave()


class TestSettling:
    async def test_works_at_any_instance_up_to_1000_ids_and_says_for_each_id_whether_it_was_done(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "abc")
        member = await bridge.join(stream, **EXPLICIT)
        ids = ack_ids(*await member.messages(3))
        assert await second.acknowledge(member.group, ids[1:2]) == [DONE]
        # Repeating does no harm.
        assert await bridge.acknowledge(member.group, ids) == [DONE, NOT_PENDING, DONE]
        assert await bridge.acknowledge(member.group, ids * 333) == [NOT_PENDING] * 999
        too_many = await refused(bridge.acknowledge(member.group, ids * 334))
        assert too_many.short == ("INVALID_ARGUMENT", "INVALID_FIELD", {"field": "ack_ids"})
        assert (await bridge.group(member.group)).pending == 0
        await member.leave()

    async def test_extend_deadline_has_the_full_deadline_count_anew(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "ab")
        worker = await bridge.join(stream, **EXPLICIT, ack_deadline_ms=2_000, max_outstanding_tokens=2)
        extended, left = ack_ids(*await worker.messages(2))
        another = await second.join(stream, **EXPLICIT)
        for _ in range(6):
            assert await second.extend(worker.group, [extended]) == [DONE]
            await asyncio.sleep(0.4)
        # 2.4 s later the one has gone to another, the other has not.
        again = await another.message()
        assert (again.first_sequence, len(again.tokens), again.delivery_attempt) == (2, 1, 2)
        assert await bridge.acknowledge(worker.group, [extended, left]) == [DONE, DONE]
        for member in (worker, another):
            await member.leave()

    async def test_reject_gives_back_at_once_or_makes_a_dead_letter_with_your_reason(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "ab")
        member = await bridge.join(stream, **EXPLICIT)
        back, dead = ack_ids(*await member.messages(2))
        assert await bridge.requeue(member.group, [back]) == [DONE]
        again = await member.message(10)
        assert (again.tokens[0].text, again.delivery_attempt) == ("a", 2)
        assert await bridge.bury(member.group, [dead], "can't be done: é") == [DONE]
        [letter] = await bridge.letters(stream)
        assert (letter.reason, letter.attempts) == ("can't be done: é", 1)
        await member.leave()

    async def test_requeueing_what_has_used_up_its_deliveries_makes_it_a_dead_letter(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "a")
        member = await bridge.join(stream, max_deliveries=1, **EXPLICIT)
        assert await bridge.requeue(member.group, ack_ids(await member.message())) == [DONE]
        [letter] = await bridge.letters_once_there(1, stream)
        assert (letter.reason, letter.attempts) == ("max_deliveries", 1)
        await member.leave()

    async def test_an_id_names_one_delivery__extending_or_rejecting_one_delivered_to_somebody_else_since_does_nothing(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "a")
        member = await bridge.join(stream, **EXPLICIT)
        stale = ack_ids(await member.message())
        await bridge.requeue(member.group, stale)
        now = ack_ids(await member.message(10))
        assert await bridge.extend(member.group, stale) == [NOT_PENDING]
        assert await bridge.requeue(member.group, stale) == [NOT_PENDING]
        assert await bridge.bury(member.group, stale) == [NOT_PENDING]
        assert await member.is_quiet()
        assert await bridge.extend(member.group, now) == [DONE]
        # An acknowledgement counts all the same, since done is done.
        assert await bridge.acknowledge(member.group, stale) == [DONE]
        assert await bridge.acknowledge(member.group, now) == [NOT_PENDING]
        await member.leave()

    async def test_an_id_that_is_none_of_the_logs_settles_nothing(self, bridge: Caller, stream: StreamRef) -> None:
        await write(bridge, stream, "a")
        member = await bridge.join(stream, **EXPLICIT)
        [mine] = ack_ids(await member.message())
        refusal = await refused(bridge.acknowledge(member.group, [mine, "what is this"]))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert refusal.metadata["field"].startswith("ack_ids")
        assert await bridge.acknowledge(member.group, [mine]) == [DONE]
        await member.leave()

    async def test_a_group_that_nobody_made_is_not_found(self, bridge: Caller, stream: StreamRef) -> None:
        await write(bridge, stream, "a")
        request = AcknowledgeRequest(group=group_of(stream, "nobody's"))
        refusal = await refused(bridge.call(request))
        assert refusal.short == ("NOT_FOUND", "GROUP_NOT_FOUND", {"group": "nobody's"})


class TestDeadLetters:
    async def test_a_letter_names_stream_cursor_group_attempts_reason_and_the_first_and_last_delivery(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        [cursor] = await write(bridge, stream, "a")
        member = await bridge.join(stream, "g é", consumer="worker", **EXPLICIT)
        await bridge.requeue(member.group, ack_ids(await member.message()))
        await bridge.bury(member.group, ack_ids(await member.message(10)), "no")
        [letter] = await bridge.letters(stream)
        assert letter.group == group_of(stream, "g é")
        assert (letter.cursor, letter.attempts, letter.reason, letter.consumer) == (cursor, 2, "no", "worker")
        assert 0 < letter.first_delivered_ms <= letter.last_delivered_ms
        await member.leave()

    async def test_given_back_to_their_group__pending_again_with_attempts_from_1(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream, "a")
        member = await bridge.join(stream, **EXPLICIT)
        await bridge.bury(member.group, ack_ids(await member.message()))
        [letter] = await second.letters(stream)
        assert await second.redrive(letter, letter) in (
            [REDRIVE_RESULT_DONE, REDRIVE_RESULT_GONE],
            [REDRIVE_RESULT_GONE, REDRIVE_RESULT_DONE],
        )
        again = await member.message(10)
        assert (again.tokens[0].text, again.delivery_attempt) == ("a", 1)
        assert await bridge.acknowledge(member.group, ack_ids(again)) == [DONE]
        assert await bridge.letters(stream) == []
        await member.leave()

    @pytest.mark.parametrize("what", ["the stream", "the group", "the entry"])
    async def test_only_if_the_entry_and_the_group_still_exist__else_gone(
        self, bridge: Caller, stream: StreamRef, what: str
    ) -> None:
        await write(bridge, stream, "ab")
        member = await bridge.join(stream, **EXPLICIT)
        await bridge.bury(member.group, ack_ids(*await member.messages(2))[:1])
        await member.leave()
        [letter] = await bridge.letters(stream)
        match what:
            case "the stream":
                await bridge.delete(stream)
            case "the group":
                await bridge.delete_group(member.group)
            case "the entry":
                await bridge.trim(stream, keep_tokens=1)
        assert await bridge.redrive(letter) == [REDRIVE_RESULT_GONE]
        # The letter stays until it is deleted.
        assert await bridge.letters(stream) == [letter]

    async def test_deleted(self, bridge: Caller, second: Caller, stream: StreamRef) -> None:
        await write(bridge, stream, "abc")
        member = await bridge.join(stream, **EXPLICIT)
        await bridge.bury(member.group, ack_ids(*await member.messages(3)))
        letters = await bridge.letters(stream)
        assert await second.delete_letters(*letters[:2]) == 2
        assert await second.delete_letters(*letters[:2]) == 0
        assert await bridge.letters(stream) == letters[2:]
        await member.leave()
