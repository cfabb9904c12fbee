"""docs/protocol.md, "Reading": where a reader begins, heartbeats, resuming, slow readers."""

import asyncio
import itertools
import time
from typing import Any

import pytest

from llmbridge.v1.bridge_service_pb2 import (
    POSITION_BEGINNING,
    POSITION_EARLIEST,
    POSITION_LATEST,
    POSITION_UNSPECIFIED,
)
from llmbridge.v1.connection_service_pb2 import DisconnectConnectionRequest, ListConnectionsRequest
from llmbridge.v1.stream_pb2 import StreamRef
from tests.conformance.caller import STOP, Caller, refused
from tests.conformance.incoming import Ended, Reader
from tests.conformance.transport import PASSES

FROM_THE_BEGINNING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "position beginning": {"position": POSITION_BEGINNING},
    "no position": {"position": POSITION_UNSPECIFIED},
    "an empty after_cursor": {"after_cursor": ""},
}


async def write(bridge: Caller, stream: StreamRef, *, end: bool = True) -> list[str]:
    """Store entries of different lengths, the last one with tokens and completion; returns every record's cursor."""
    for first, texts in ((1, "abc"), (4, "d"), (5, "ef")):
        await bridge.produce(stream, *texts, first=first)
    if end:
        await bridge.produce(stream, *"gh", first=7, end=STOP)
    length = 8 if end else 6
    # A repetition answers the cursor of its own last record, also inside of an entry.
    return ["", *[(await bridge.produce(stream, *"abcdefgh"[:n], first=1)).cursor for n in range(1, length + 1)]]


class TestStarts:
    @pytest.mark.parametrize("start", FROM_THE_BEGINNING.values(), ids=FROM_THE_BEGINNING)
    async def test_nothing_or_beginning_or_an_empty_cursor__everything_from_record_1(
        self, bridge: Caller, stream: StreamRef, start: dict[str, Any]
    ) -> None:
        await write(bridge, stream)
        reader = await bridge.read_all(stream, **start)
        assert (reader.text, reader.last, reader.completion) == ("abcdefgh", 9, STOP)

    @pytest.mark.parametrize("start", FROM_THE_BEGINNING.values(), ids=FROM_THE_BEGINNING)
    async def test_nothing_or_beginning_or_an_empty_cursor__trimmed_if_record_1_is_gone(
        self, bridge: Caller, stream: StreamRef, start: dict[str, Any]
    ) -> None:
        await write(bridge, stream)
        await bridge.trim(stream, keep_tokens=2)
        refusal = await (await bridge.subscribe(stream, wait=False, **start)).refused()
        assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "TRIMMED")

    @pytest.mark.parametrize("created", [False, True], ids=["absent", "created"])
    @pytest.mark.parametrize("start", FROM_THE_BEGINNING.values(), ids=FROM_THE_BEGINNING)
    async def test_nothing_or_beginning_or_an_empty_cursor__waits_if_the_stream_does_not_exist_yet(
        self, bridge: Caller, second: Caller, stream: StreamRef, start: dict[str, Any], created: bool
    ) -> None:
        if created:
            await bridge.create(stream)
        reader = await bridge.subscribe(stream, **start)
        await write(second, stream)
        assert (await reader.to_the_end()).text == "abcdefgh"

    async def test_after_cursor__what_comes_after_that_record(self, bridge: Caller, stream: StreamRef) -> None:
        for place, cursor in enumerate(await write(bridge, stream)):
            reader = await bridge.read_all(stream, last=place, after_cursor=cursor)
            assert (reader.text, reader.completion) == ("abcdefgh"[place:], STOP)

    async def test_after_cursor__nothing_and_ok_if_that_was_the_completion(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await write(bridge, stream)
        end = (await bridge.read_all(stream)).cursor
        again = await bridge.subscribe(stream, wait=False, after_cursor=end)
        with pytest.raises(Ended):
            await again.call.next()

    async def test_earliest__everything_that_is_left(self, bridge: Caller, stream: StreamRef) -> None:
        await write(bridge, stream)
        assert (await bridge.read_all(stream, position=POSITION_EARLIEST)).text == "abcdefgh"
        kept = await bridge.trim(stream, keep_tokens=3)
        reader = await bridge.read_all(stream, last=kept.first_sequence - 1, position=POSITION_EARLIEST)
        assert reader.text == "efgh"

    async def test_latest__at_once_a_heartbeat_with_the_cursor_that_now_means_then_only_what_is_appended(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        cursors = await write(bridge, stream, end=False)
        reader = await bridge.subscribe(stream, last=6, position=POSITION_LATEST)
        reader.cursor = cursors[-1]
        await reader.heartbeat()
        await reader.leave()
        await second.produce(stream, *"gh", first=7)
        # Cut off before its first record it resumes without a loss.
        resumed = await second.subscribe(stream, last=6, after_cursor=reader.cursor)
        late = await bridge.subscribe(stream, last=8, position=POSITION_LATEST, wait=True)
        now = await late.call.next()
        assert not now.tokens
        late.cursor = now.cursor
        await second.produce(stream, "i", first=9, end=STOP)
        assert (await resumed.to_the_end()).text == "ghi"
        assert (await late.to_the_end()).text == "i"

    @pytest.mark.parametrize("together", [False, True], ids=["alone", "with the last tokens"])
    async def test_latest__of_a_sealed_stream_the_completion(
        self, bridge: Caller, stream: StreamRef, together: bool
    ) -> None:
        await bridge.produce(stream, *"ab", first=1, end=STOP if together else None)
        if not together:
            await bridge.produce(stream, first=3, end=STOP)
        reader = await bridge.read_all(stream, last=2, position=POSITION_LATEST)
        assert (reader.texts, reader.completion, reader.last) == ([], STOP, 3)

    async def test_latest__of_a_stream_that_does_not_exist_yet_everything(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        reader = await bridge.subscribe(stream, position=POSITION_LATEST)
        await reader.heartbeat()
        assert reader.cursor == ""
        await write(bridge, stream)
        assert (await reader.to_the_end()).text == "abcdefgh"


class TestHeartbeats:
    async def test_a_heartbeat_comes_after_so_long_without_another_message_with_the_cursor_where_the_reader_stands(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        bridge.needs_heartbeats()
        every = bridge.instance.setting("LLMBRIDGE_HEARTBEAT_MS") / 1_000
        if every > 5:
            pytest.skip("heartbeats of the target are too far apart to wait for")
        reader = await bridge.subscribe(stream)
        # Empty before the first record; that it repeats the last record's cursor otherwise is checked with each.
        await reader.heartbeat()
        assert reader.cursor == ""
        await bridge.produce(stream, "a", first=1)
        await reader.through(1)
        came = [time.monotonic()]
        # A busy machine may hold up one of them, and so bring it together with the next.
        for _ in range(6):
            await reader.heartbeat()
            came.append(time.monotonic())
        pauses = sorted(later - earlier for earlier, later in itertools.pairwise(came))
        assert 0.5 * every < pauses[3] < 3 * every, "it is dropped after three times that long"
        await bridge.produce(stream, "b", first=2, end=STOP)
        assert (await reader.to_the_end()).text == "ab"


class TestResuming:
    async def test_from_every_cursor_of_a_run_nothing_comes_twice_and_nothing_is_missing(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        readers = [await caller.subscribe(stream) for caller in (bridge, second)]
        await write(bridge, stream)
        for reader in readers:
            await reader.to_the_end()
            for place, cursor in reader.cursors.items():
                if place == 8:
                    continue
                resumed = await second.read_all(stream, last=place, after_cursor=cursor)
                assert resumed.text == "abcdefgh"[place:]

    async def test_in_the_middle_of_an_entry_of_a_stream_that_goes_on(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        cursors = await write(bridge, stream, end=False)
        readers = [
            await caller.subscribe(stream, last=place, after_cursor=cursor)
            for caller in (bridge, second)
            for place, cursor in enumerate(cursors)
        ]
        await second.produce(stream, *"gh", first=7, end=STOP)
        for i, reader in enumerate(readers):
            assert (await reader.to_the_end()).text == "abcdefgh"[i % 7 :]

    async def test_a_reader_that_is_cut_after_every_message(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        async def read() -> str:
            reader, texts = await bridge.subscribe(stream), ""
            while reader.completion is None:
                if reader.take(await reader.call.next()):
                    texts += "".join(reader.texts)
                    reader.texts.clear()
                    if reader.completion is None:
                        await reader.leave()
                        caller = (bridge, second)[reader.last % 2]
                        reader = await caller.subscribe(stream, last=reader.last, after_cursor=reader.cursor)
            return texts

        async def produce() -> None:
            for i in range(30):
                await second.produce(stream, f"{i},", ".", first=2 * i + 1)
            await second.produce(stream, first=61, end=STOP)

        text, _ = await asyncio.gather(read(), produce())
        assert text == "".join(f"{i},." for i in range(30))


class TestSlowReaders:
    async def test_one_is_held_by_flow_control_holds_up_nobody_else_and_catches_up(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        texts = bridge.more_than_fits()
        slow = await bridge.subscribe(stream)
        fast = await bridge.subscribe(stream)
        for i, text in enumerate(texts):
            await bridge.produce(stream, text, first=i + 1)
            await fast.through(i + 1)
        await bridge.produce(stream, first=len(texts) + 1, end=STOP)
        assert (await fast.to_the_end()).texts == texts
        assert (await slow.to_the_end()).texts == texts

    async def test_one_that_takes_nothing_for_so_long_gets_connection_idle_behind_what_it_has_not_taken(
        self, hasty: Caller, stream: StreamRef
    ) -> None:
        texts = hasty.more_than_fits()
        await hasty.create(stream, retention_ms=60_000)
        idle = await hasty.subscribe(stream)
        for i, text in enumerate(texts):
            await hasty.produce(stream, text, first=i + 1)
        await hasty.produce(stream, first=len(texts) + 1, end=STOP)
        await asyncio.sleep(hasty.instance.setting("CONNECTION_CLEANUP_INTERVAL") * 2 / 1_000)
        refusal = await idle.refused()
        assert refusal.code == "UNAVAILABLE"
        assert refusal.reason == PASSES or (refusal.reason, refusal.metadata) == ("CONNECTION_IDLE", {})
        assert refusal.retry_ms
        assert 0 < idle.last < len(texts)
        rest = await hasty.read_all(stream, last=idle.last, after_cursor=idle.cursor)
        assert idle.texts + rest.texts == texts


async def test_an_operators_disconnect_is_aborted_disconnected_with_the_cursor(
    bridge: Caller, stream: StreamRef
) -> None:
    await bridge.produce(stream, "a", first=1)
    reader: Reader = await (await bridge.subscribe(stream)).through(1)
    listed = await bridge.call(ListConnectionsRequest(session_id=stream.session_id))
    [connection] = listed.connections
    assert connection.stream == stream
    await bridge.call(DisconnectConnectionRequest(connection_id=connection.id))
    refusal = await reader.refused()
    assert refusal.short == ("ABORTED", "DISCONNECTED", {"cursor": reader.cursor})
    gone = await refused(bridge.call(DisconnectConnectionRequest(connection_id=connection.id)))
    assert gone.short == ("NOT_FOUND", "CONNECTION_NOT_FOUND", {"connection_id": connection.id})
