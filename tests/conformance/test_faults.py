"""docs/protocol.md: what happens when the bridge drains or is killed, and when Redis is unreachable."""

import asyncio
import os
import signal
import time
from typing import Any

from llmbridge.v1.bridge_service_pb2 import ACKNOWLEDGEMENT_EXPLICIT, POSITION_LATEST
from llmbridge.v1.stream_pb2 import StreamRef
from tests.conformance.caller import DONE, STOP, Caller, new_stream, refused
from tests.conformance.conftest import Doomed, Nervous
from tests.conformance.incoming import COMPLETED, CREATED, ack_ids
from tests.conformance.transport import PASSES

PATIENT: dict[str, Any] = {"acknowledgement": ACKNOWLEDGEMENT_EXPLICIT, "ack_deadline_ms": 60_000}


def send(caller: Caller, number: signal.Signals) -> None:
    assert caller.instance.process is not None
    caller.instance.process.process.send_signal(number)


class TestDrain:
    async def test_readers_get_draining_with_their_cursor_and_resume_at_another_instance(
        self, doomed: Doomed, stream: StreamRef
    ) -> None:
        first, other = await doomed.bridge(), doomed.other
        cursor = (await first.produce(stream, *"ab", first=1)).cursor
        reader = await (await first.subscribe(stream)).through(2)
        waiting = await first.subscribe(new_stream())
        new = await first.subscribe(stream, last=2, position=POSITION_LATEST)
        new.cursor = cursor
        send(first, signal.SIGTERM)
        for call, place in ((reader, cursor), (waiting, ""), (new, cursor)):
            refusal = await call.refused()
            assert (refusal.code, refusal.metadata) == ("UNAVAILABLE", {"cursor": place})
            assert refusal.reason in ("DRAINING", PASSES)
            assert refusal.trailing_cursor == place
            assert refusal.retry_ms
        on = await other.subscribe(stream, last=2, after_cursor=reader.cursor)
        await other.produce(stream, "c", first=3, end=STOP)
        assert (await on.to_the_end()).text == "c"
        assert first.instance.process is not None
        assert await asyncio.to_thread(first.instance.process.process.wait, 30) == 0

    async def test_unsettled_entries_stay_the_members_which_settles_at_any_other_bridge(
        self, doomed: Doomed, stream: StreamRef
    ) -> None:
        first, other = await doomed.bridge(), doomed.other
        await other.produce(stream, "a", first=1)
        member = await first.join(stream, **PATIENT)
        mine = await member.message()
        send(first, signal.SIGTERM)
        refusal = await member.refused()
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAINING")
        another = await other.join(stream, **PATIENT)
        assert await another.is_quiet()
        assert await other.acknowledge(another.group, ack_ids(mine)) == [DONE]
        await other.produce(stream, first=2, end=STOP)
        assert (await another.to_the_end()).text == ""

    async def test_events_stay_the_workers_which_settles_at_any_other_bridge(
        self, doomed: Doomed, stream: StreamRef, group: str
    ) -> None:
        first, other = await doomed.bridge(), doomed.other
        watcher = await first.watch(stream, group=group)
        await other.produce(stream, "a", first=1)
        event = await watcher.event()
        send(first, signal.SIGTERM)
        refusal = await watcher.refused()
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAINING")
        another = await other.watch(stream, group=group)
        assert await another.is_quiet()
        assert await other.acknowledge(another.group, [event.ack_id]) == [DONE]


class TestTheBridgeIsKilled:
    async def test_entries_go_to_other_members_when_the_deadline_has_passed(
        self, doomed: Doomed, stream: StreamRef
    ) -> None:
        first, other = await doomed.bridge(), doomed.other
        settings: dict[str, Any] = {"acknowledgement": ACKNOWLEDGEMENT_EXPLICIT, "ack_deadline_ms": 800}
        await other.produce(stream, "a", first=1, end=STOP)
        begun = time.monotonic()
        await (await first.join(stream, **settings)).message()
        another = await other.join(stream, **settings)
        send(first, signal.SIGKILL)
        again = await another.message()
        assert time.monotonic() - begun > 0.75, "the deadline had not passed"
        assert (again.tokens[0].text, again.delivery_attempt) == ("a", 2)
        assert await other.acknowledge(another.group, ack_ids(again)) == [DONE]
        assert (await another.to_the_end()).completions == [STOP]

    async def test_what_it_had_not_settled_yet_for_a_member_that_acknowledges_automatically_is_delivered_again(
        self, doomed: Doomed, stream: StreamRef
    ) -> None:
        # It settles a second later at the latest (CONSUMER_POLL_TIMEOUT), here a minute.
        first, other = await doomed.bridge(CONSUMER_POLL_TIMEOUT="60000"), doomed.other
        await other.produce(stream, *"ab", first=1, end=STOP)
        member = await first.join(stream, ack_deadline_ms=500)
        await member.message()
        send(first, signal.SIGKILL)
        another = await other.join(stream, share=member.share)
        # Each is handed out at least once.
        share = await another.to_the_end()
        assert share.text == "ab"
        assert set(share.attempts) == {1, 2}

    async def test_events_go_to_other_watchers_when_the_deadline_has_passed(
        self, doomed: Doomed, stream: StreamRef, group: str
    ) -> None:
        first, other = await doomed.bridge(), doomed.other
        watcher = await first.watch(stream, group=group, ack_deadline_ms=800)
        begun = time.monotonic()
        await other.produce(stream, "a", first=1, end=STOP)
        mine = await watcher.take(2)
        another = await other.watch(stream, group=group, ack_deadline_ms=800)
        send(first, signal.SIGKILL)
        again = await another.take(2)
        assert time.monotonic() - begun > 0.75, "the deadline had not passed"
        assert {event.cursor for event in again} == {event.cursor for event in mine}
        assert {event.delivery_attempt for event in again} == {2}


class TestRedisIsUnreachable:
    async def test_attached_readers_stay_with_heartbeats_and_go_on_and_a_new_call_gets_unavailable(
        self, nervous: Nervous, stream: StreamRef
    ) -> None:
        bridge = nervous.bridge
        await bridge.produce_surely(stream, "a", first=1)
        reader = await (await bridge.subscribe(stream)).through(1)

        nervous.redis.kill()
        for _ in range(2 if bridge.transport.shows_heartbeats else 0):
            await reader.heartbeat()
        new = await (await bridge.subscribe(stream, wait=False)).refused()
        assert new.reason in ("REDIS_UNAVAILABLE", PASSES)
        others = [
            await refused(bridge.produce(new_stream(), "x", first=1)),
            await refused(bridge.info(stream)),
            await refused(bridge.cancel(stream)),
            await refused(bridge.keep_alive(stream)),
        ]
        assert {refusal.reason for refusal in others} == {"REDIS_UNAVAILABLE"}
        for refusal in (new, *others):
            assert refusal.code == "UNAVAILABLE"
            assert refusal.retry_ms

        nervous.redis.start()
        await bridge.produce_surely(stream, "b", first=2)
        await bridge.produce_surely(stream, first=3, end=STOP)
        assert (await reader.to_the_end()).text == "ab"

    async def test_attached_members_and_watchers_stay_with_heartbeats_and_go_on(
        self, nervous: Nervous, stream: StreamRef, group: str
    ) -> None:
        bridge = nervous.bridge
        await bridge.produce_surely(stream, "a", first=1)
        member = await bridge.join(stream, acknowledgement=ACKNOWLEDGEMENT_EXPLICIT, ack_deadline_ms=60_000)
        [mine] = await member.messages(1)
        watcher = await bridge.watch(stream, group=group)
        await watcher.take(1)

        nervous.redis.kill()
        for _ in range(2):
            assert not (await member.call.next()).tokens
            await watcher.heartbeat()

        nervous.redis.start()
        await bridge.produce_surely(stream, "b", first=2)
        await bridge.produce_surely(stream, first=3, end=STOP)
        ids = ack_ids(mine, *await member.messages(1))
        assert await bridge.acknowledge(member.group, ids) == [DONE, DONE]
        assert (await member.to_the_end()).text == "ab"
        assert [event.type for event in [*watcher.events, *await watcher.take(1)]] == [CREATED, COMPLETED]

    async def test_the_outcome_is_unknown_and_the_same_request_again_stores_it_once(
        self, nervous: Nervous, stream: StreamRef
    ) -> None:
        bridge = nervous.bridge
        await bridge.produce_surely(stream, "a", first=1)
        process = nervous.redis.process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            refusal = await refused(bridge.produce(stream, *"bc", first=2))
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert refusal.short == ("UNAVAILABLE", "APPEND_OUTCOME_UNKNOWN", {})
        assert refusal.retry_ms
        for _ in range(2):
            await bridge.produce_surely(stream, *"bc", first=2)
        await bridge.produce_surely(stream, first=4, end=STOP)
        assert (await bridge.read_all(stream)).text == "abc"
