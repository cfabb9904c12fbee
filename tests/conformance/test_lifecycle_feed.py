"""docs/protocol.md, "Lifecycle feed". What becomes of events when the bridge or Redis goes is in test_faults.py.

A group of the feed gets everybody's events: each case has groups and sessions of its own, and looks at those only.
"""

import asyncio

import pytest

from llmbridge.v1.group_service_pb2 import REDRIVE_RESULT_DONE
from llmbridge.v1.lifecycle_service_pb2 import LifecycleEvent
from llmbridge.v1.stream_admin_service_pb2 import ListStreamsRequest
from llmbridge.v1.stream_pb2 import SEALER_CANCEL, SEALER_LOST, SEALER_PRODUCER, StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_STOP, Completion, Usage
from tests.conformance.caller import DONE, NOT_PENDING, STOP, Caller, new_stream, refused
from tests.conformance.conftest import Connect
from tests.conformance.incoming import COMPLETED, CREATED, PATIENCE_SECONDS, Watcher, feed_group


def kinds(events: list[LifecycleEvent]) -> list[tuple[str, int]]:
    return [(event.stream.session_id, event.type) for event in events]


def new_response(stream: StreamRef, response: str) -> StreamRef:
    """Name another response of the same session, whose events are in the same part of the feed."""
    return StreamRef(session_id=stream.session_id, model_id="m", response_id=response)


class TestAnEvent:
    async def test_says_that_a_stream_was_created_or_completed_with_what_it_carries(
        self, bridge: Caller, stream: StreamRef, group: str
    ) -> None:
        watcher = await bridge.watch(stream, group=group)
        await bridge.produce(stream, *"ab", first=1)
        created = await watcher.event()
        end = Completion(finish_reason=FINISH_REASON_STOP, usage=Usage(prompt_tokens=5, completion_tokens=3))
        answer = await bridge.produce(stream, "c", first=3, end=end)
        completed = await watcher.event()
        assert created.stream == completed.stream == stream
        assert (created.type, created.tokens, created.delivery_attempt) == (CREATED, 0, 1)
        assert (completed.type, completed.tokens, completed.sealer) == (COMPLETED, 3, SEALER_PRODUCER)
        assert (completed.completion, completed.cursor) == (end, answer.cursor)
        assert created.cursor == created.start_cursor == completed.start_cursor
        assert 0 < created.created_ms == completed.created_ms <= created.recorded_ms <= completed.recorded_ms
        # To read the answer subscribe after start_cursor.
        assert (await bridge.read_all(stream, after_cursor=completed.start_cursor)).text == "abc"
        assert await bridge.acknowledge(watcher.group, [created.ack_id, completed.ack_id]) == [DONE, DONE]
        await watcher.leave()

    async def test_of_a_stream_that_create_stream_or_a_cancel_before_either_created(
        self, bridge: Caller, group: str
    ) -> None:
        created, cancelled = new_stream(), new_stream()
        watcher = await bridge.watch(created, cancelled, group=group)
        await bridge.create(created)
        assert kinds([await watcher.event()]) == [(created.session_id, CREATED)]
        await bridge.cancel(cancelled, "enough")
        events = await watcher.take(2)
        assert kinds(events) == [(cancelled.session_id, CREATED), (cancelled.session_id, COMPLETED)]
        assert events[1].sealer == SEALER_CANCEL
        assert events[1].completion == Completion(finish_reason=FINISH_REASON_CANCELLED, error_message="enough")
        await watcher.leave()

    async def test_of_a_stream_whose_producer_was_lost(self, hasty: Caller, stream: StreamRef, group: str) -> None:
        watcher = await hasty.watch(stream, group=group)
        await hasty.create(stream, retention_ms=60_000)
        events = await watcher.take(2)
        assert kinds(events) == [(stream.session_id, CREATED), (stream.session_id, COMPLETED)]
        assert events[1].sealer == SEALER_LOST
        await watcher.leave()

    async def test_what_is_refused_leaves_none_and_a_repetition_no_second_one(
        self, bridge: Caller, stream: StreamRef, group: str
    ) -> None:
        watcher = await bridge.watch(stream, group=group)
        await refused(bridge.produce(stream, "x", first=2))
        await bridge.produce(stream, "a", first=1, by="p")
        await refused(bridge.produce(stream, end=STOP, first=9, by="p"))
        await refused(bridge.create(stream))
        for _ in range(2):
            await bridge.produce(stream, "b", first=2, end=STOP, by="p")
        await refused(bridge.produce(stream, "x", first=4, by="p"))
        await bridge.cancel(stream)
        assert kinds(await watcher.take(2)) == [(stream.session_id, CREATED), (stream.session_id, COMPLETED)]
        assert await watcher.is_quiet()
        await watcher.leave()

    async def test_deleting_is_no_event_and_then_start_cursor_is_out_of_range_and_never_another_stream(
        self, bridge: Caller, stream: StreamRef, group: str
    ) -> None:
        watcher = await bridge.watch(stream, group=group)
        await bridge.produce(stream, "a", first=1, end=STOP)
        created, completed = await watcher.take(2)
        await bridge.delete(stream)
        assert await watcher.is_quiet()
        for reason in ("EXPIRED", "RESTARTED"):
            reader = await bridge.subscribe(stream, wait=False, after_cursor=completed.start_cursor)
            refusal = await reader.refused()
            assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", reason)
            if reason == "EXPIRED":
                await bridge.produce(stream, "another", first=1, end=STOP)
        events = await watcher.take(2)
        # Stream and cursor together name the event.
        assert {event.cursor for event in events}.isdisjoint({created.cursor, completed.cursor})
        await watcher.leave()

    async def test_a_streams_created_event_is_handed_out_first_before_its_completed_one(
        self, bridge: Caller, second: Caller, group: str
    ) -> None:
        streams = [new_stream() for _ in range(15)]
        watcher = await bridge.watch(*streams, group=group)
        await asyncio.gather(*(second.produce(stream, "a", first=1, end=STOP) for stream in streams))
        events = await watcher.take(30)
        for stream in streams:
            its = [event.type for event in events if event.stream == stream]
            assert its == [CREATED, COMPLETED]
        assert await watcher.is_quiet()
        await watcher.leave()

    async def test_times_never_fall_within_a_session(self, bridge: Caller, stream: StreamRef, group: str) -> None:
        responses = [new_response(stream, f"{i}") for i in range(10)]
        watcher = await bridge.watch(stream, group=group)
        for response in responses:
            await bridge.produce(response, "a", first=1, end=STOP)
        events = await watcher.take(20)
        assert [event.stream for event in events] == [response for response in responses for _ in range(2)]
        times = [event.recorded_ms for event in events]
        assert times == sorted(times)
        await watcher.leave()


class TestPromises:
    async def test_every_kept_event_is_delivered_to_every_group_from_the_oldest_kept_when_the_group_is_new(
        self, bridge: Caller, second: Caller, stream: StreamRef, group: str
    ) -> None:
        await bridge.produce(stream, "a", first=1, end=STOP)
        for caller, name in ((bridge, group), (second, f"{group}-2")):
            watcher = await caller.watch(stream, group=name)
            assert kinds(await watcher.take(2)) == [(stream.session_id, CREATED), (stream.session_id, COMPLETED)]
            assert watcher.missed == 0
            await watcher.leave()

    async def test_later_from_where_the_group_stands(
        self, bridge: Caller, second: Caller, stream: StreamRef, group: str
    ) -> None:
        await bridge.produce(stream, "a", first=1)
        watcher = await bridge.watch(stream, group=group)
        await bridge.acknowledge(watcher.group, [(await watcher.event()).ack_id])
        await watcher.leave()
        await bridge.produce(stream, first=2, end=STOP)
        later = await second.watch(stream, group=group)
        assert kinds([await later.event()]) == [(stream.session_id, COMPLETED)]
        assert later.missed == 0
        await later.leave()

    async def test_until_a_member_has_acknowledged_it_or_it_is_a_dead_letter(
        self, bridge: Caller, stream: StreamRef, group: str
    ) -> None:
        await bridge.produce(stream, "a", first=1)
        watcher = await bridge.watch(stream, group=group, ack_deadline_ms=150, max_deliveries=3)
        for attempt in (1, 2, 3):
            event = await watcher.event()
            assert event.delivery_attempt == attempt
        [letter] = await bridge.letters_once_there(1, group=group)
        assert (letter.reason, letter.attempts) == ("max_deliveries", 3)
        assert letter.group == watcher.group
        assert await bridge.acknowledge(watcher.group, [event.ack_id]) == [NOT_PENDING]
        assert await bridge.redrive(letter) == [REDRIVE_RESULT_DONE]
        again = await watcher.event(10)
        assert (again.stream, again.delivery_attempt) == (stream, 1)
        assert await bridge.acknowledge(watcher.group, [again.ack_id]) == [DONE]
        assert await watcher.is_quiet(0.4)
        await watcher.leave()

    async def test_deadlines_and_settling_are_those_of_groups(
        self, bridge: Caller, second: Caller, stream: StreamRef, group: str
    ) -> None:
        await bridge.produce(stream, "a", first=1, end=STOP)
        watcher = await bridge.watch(stream, group=group)
        created, completed = await watcher.take(2)
        assert await second.extend(watcher.group, [created.ack_id]) == [DONE]
        assert await second.requeue(watcher.group, [created.ack_id]) == [DONE]
        again = await watcher.event(10)
        assert (again.type, again.delivery_attempt) == (CREATED, 2)
        assert await second.extend(watcher.group, [created.ack_id]) == [NOT_PENDING]
        assert await second.acknowledge(watcher.group, [again.ack_id, completed.ack_id]) == [DONE, DONE]
        refusal = await (await second.watch(stream, group=group, wait=False, ack_deadline_ms=777)).refused()
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "GROUP_SETTINGS_DIFFER")
        assert refusal.metadata == {"group": group, "ack_deadline_ms": "30000", "max_deliveries": "5"}
        await watcher.leave()

    async def test_no_more_events_are_outstanding_than_asked_for(self, bridge: Caller, group: str) -> None:
        streams = [new_stream() for _ in range(4)]
        for stream in streams:
            await bridge.produce(stream, "a", first=1, end=STOP)
        watcher = await bridge.watch(*streams, group=group, max_outstanding_events=3)
        for _ in range(2):
            held = await watcher.take(3)
            assert await watcher.is_quiet()
            await bridge.acknowledge(watcher.group, [event.ack_id for event in held])
        await watcher.take(2)
        await watcher.leave()

    async def test_two_watchers_share_and_each_event_goes_to_one(
        self, bridge: Caller, second: Caller, group: str
    ) -> None:
        streams = [new_stream() for _ in range(20)]
        watchers = [await caller.watch(*streams, group=group, ack_deadline_ms=60_000) for caller in (bridge, second)]
        for stream in streams:
            await bridge.produce(stream, "a", first=1, end=STOP)

        async def work(watcher: Watcher) -> None:
            while sum(len(each.events) for each in watchers) < 2 * len(streams) or not await watcher.is_quiet():
                if not await watcher.is_quiet(0.05):
                    await bridge.acknowledge(watcher.group, [watcher.events[-1].ack_id])

        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*map(work, watchers))
        events = [*watchers[0].events, *watchers[1].events]
        assert {event.delivery_attempt for event in events} == {1}
        assert sorted(kinds(events)) == sorted((s.session_id, kind) for s in streams for kind in (CREATED, COMPLETED))
        for watcher in watchers:
            await watcher.leave()


class TestWhatHappens:
    @pytest.mark.parametrize("how", ["its call ends", "its connection breaks"])
    async def test_a_worker_goes__given_back_at_once_the_attempt_counted(
        self, bridge: Caller, connect: Connect, stream: StreamRef, group: str, how: str
    ) -> None:
        await bridge.produce(stream, "a", first=1)
        worker = await connect(bridge.instance)
        watcher = await worker.watch(stream, group=group)
        await watcher.event()
        another = await bridge.watch(stream, group=group)
        assert await another.is_quiet()
        if how == "its call ends":
            await watcher.leave()
        else:
            await worker.transport.close()
        # The deadline is 30 s.
        assert (await another.event(10)).delivery_attempt == 2
        await another.leave()

    async def test_all_workers_are_away_for_longer_than_events_are_kept__those_nobody_got_are_counted_in_missed(
        self, hasty: Caller, stream: StreamRef, group: str
    ) -> None:
        kept_ms = hasty.instance.setting("REDIS_STREAM_RETENTION_MS")
        watcher = await hasty.watch(stream, group=group, ack_deadline_ms=500)
        await hasty.produce(stream, "a", first=1)
        # This one is delivered and not settled, and its worker leaves.
        await watcher.event()
        await watcher.leave()
        others = [new_response(stream, f"{i}") for i in range(3)]
        for other in others:
            await hasty.produce(other, "a", first=1, end=STOP)
        await asyncio.sleep(kept_ms / 1_000 + 0.2)
        # Old events are dropped when new ones come, some at a time; other cases' are older still.
        for i in range(20):
            await hasty.produce(new_response(stream, f"new {i}"), "a", first=1, end=STOP)
        last = new_response(stream, "last")
        await hasty.produce(last, "a", first=1, end=STOP)
        back = await hasty.watch(stream, group=group)
        event = await back.event()
        while event.stream != last:
            event = await back.event()
        assert back.missed >= 6
        [letter] = await hasty.letters_once_there(1, group=group)
        assert letter.reason == "trimmed"
        missed = back.missed
        assert (await back.event()).type == COMPLETED
        await hasty.produce(new_response(stream, "more"), "a", first=1)
        assert (await back.event()).type == CREATED
        # Once only.
        assert back.missed == missed
        await back.leave()

    async def test_a_worker_that_was_away_for_less_loses_nothing(
        self, hasty: Caller, stream: StreamRef, group: str
    ) -> None:
        watcher = await hasty.watch(stream, group=group)
        await hasty.produce(stream, "a", first=1, end=STOP)
        await hasty.acknowledge(watcher.group, [event.ack_id for event in await watcher.take(2)])
        await watcher.leave()
        later = new_response(stream, "later")
        await hasty.produce(later, "a", first=1, end=STOP)
        back = await hasty.watch(stream, group=group)
        assert [(event.stream, event.type) for event in await back.take(2)] == [(later, CREATED), (later, COMPLETED)]
        assert back.missed == 0
        await back.leave()

    async def test_a_streams_own_retention_is_shorter__its_events_outlive_it_and_subscribing_is_expired(
        self, bridge: Caller, stream: StreamRef, group: str
    ) -> None:
        await bridge.create(stream, retention_ms=1_000)
        await bridge.produce(stream, "a", first=1, end=STOP)
        async with asyncio.timeout(10):
            while (await bridge.call(ListStreamsRequest(session_id=stream.session_id))).streams:
                await asyncio.sleep(0.1)
        watcher = await bridge.watch(stream, group=group)
        created, completed = await watcher.take(2)
        for event in (created, completed):
            late = await bridge.subscribe(stream, wait=False, after_cursor=event.start_cursor)
            assert (await late.refused()).short == ("OUT_OF_RANGE", "EXPIRED", {"earliest_cursor": ""})
        await watcher.leave()

    async def test_delete_group__its_watchers_get_group_not_found_and_the_next_one_makes_a_new_group(
        self, bridge: Caller, second: Caller, stream: StreamRef, group: str
    ) -> None:
        await bridge.produce(stream, "a", first=1)
        watcher = await bridge.watch(stream, group=group)
        await bridge.acknowledge(watcher.group, [(await watcher.event()).ack_id])
        await second.delete_group(feed_group(group))
        assert (await watcher.refused()).short == ("NOT_FOUND", "GROUP_NOT_FOUND", {"group": group})
        assert (await refused(bridge.group(feed_group(group)))).reason == "GROUP_NOT_FOUND"
        again = await bridge.watch(stream, group=group)
        event = await again.event()
        # From the oldest event kept.
        assert (event.type, event.delivery_attempt) == (CREATED, 1)
        await again.leave()

    async def test_heartbeats_are_messages_without_events(self, hasty: Caller, stream: StreamRef, group: str) -> None:
        watcher = await hasty.watch(stream, group=group)
        async with asyncio.timeout(15):
            quiet = 0
            while quiet < 2:
                message = await watcher.call.next()
                quiet = 0 if message.events else quiet + 1
                if message.events:
                    await hasty.acknowledge(watcher.group, [event.ack_id for event in message.events])
        await watcher.leave()
