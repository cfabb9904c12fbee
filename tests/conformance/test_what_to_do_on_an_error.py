"""docs/protocol.md: "What to do on an error", "Taking over", "Silence on purpose", "Stopping"."""

import asyncio
import time

import pytest

from llmbridge.v1.stream_pb2 import SEALER_CANCEL, SEALER_LOST, SEALER_PRODUCER, STREAM_STATE_SEALED, StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_STOP, Completion
from tests.conformance.caller import STOP, Caller, new_stream, refused

CANCELLED = {"finish_reason": "FINISH_REASON_CANCELLED", "sealer": "SEALER_CANCEL"}


class TestWhatToDoOnAnError:
    async def test_your_deadline_passed__the_same_request_again_unchanged_at_another_instance(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        cut = 0
        for i in range(60):
            first, texts = 2 * i + 1, (f"{i},", ".")
            try:
                # Given up before it was sent, on its way, or with the answer on its way.
                async with asyncio.timeout(0.0003 * (i % 10)):
                    await bridge.produce(stream, *texts, first=first, by="p")
            except TimeoutError:
                cut += 1
                answer = await second.produce(stream, *texts, first=first, by="p")
                assert answer.last_sequence == 2 * i + 2
        assert cut, "no deadline passed"
        await second.produce(stream, first=121, end=STOP, by="p")
        assert (await bridge.read_all(stream)).text == "".join(f"{i},." for i in range(60))

    async def test_sequence_gap__go_back_to_expected_and_send_from_there(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await bridge.produce(stream, *"abc", first=1, by="p")
        gap = await refused(bridge.produce(stream, *"fg", first=6, by="p"))
        expected = int(gap.metadata["expected"])
        await bridge.produce(stream, *"abcdefg"[expected - 1 :], first=expected, end=STOP, by="p")
        assert (await bridge.read_all(stream)).text == "abcdefg"

    async def test_expected_1_where_you_had_sent_before_means_that_the_stream_was_deleted(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await bridge.produce(stream, "a", first=1)
        await bridge.delete(stream)
        gap = await refused(bridge.produce(stream, "b", first=2))
        assert gap.short == ("ABORTED", "SEQUENCE_GAP", {"expected": "1", "received": "2"})

    async def test_resource_exhausted__the_message_names_the_limit_and_nothing_is_stored(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        # More than any setting allows, and less than gRPC itself refuses.
        refusal = await refused(bridge.produce(stream, "x" * 3_200_000, first=1))
        assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")
        assert int(refusal.metadata["value"]) > int(refusal.metadata["maximum"])
        assert refusal.metadata["limit"] in refusal.message
        assert refusal.retry_ms is None
        assert (await refused(bridge.info(stream))).reason == "STREAM_NOT_FOUND"


class TestTakingOver:
    async def test_read_to_the_end_then_produce_with_a_higher_epoch_from_last_sequence_plus_1(
        self, bridge: Caller, second: Caller, stream: StreamRef
    ) -> None:
        await bridge.produce(stream, *"abc", first=1, epoch=4, by="crashed")
        info = await second.info(stream)
        assert (info.last_sequence, info.producer_epoch) == (3, 4)
        so_far = await (await second.subscribe(stream)).through(info.last_sequence)
        assert so_far.text == "abc"
        await second.produce(stream, "d", first=info.last_sequence + 1, epoch=info.producer_epoch + 1, by="successor")
        told = await refused(bridge.produce(stream, "x", first=4, epoch=4, by="crashed"))
        assert told.short == ("FAILED_PRECONDITION", "FENCED", {"epoch": "5"})
        told = await refused(bridge.keep_alive(stream, epoch=4, by="crashed"))
        assert told.short == ("FAILED_PRECONDITION", "FENCED", {"epoch": "5"})
        await second.produce(stream, first=5, end=STOP, epoch=5, by="successor")
        assert (await so_far.to_the_end()).text == "abcd"

    async def test_it_is_the_first_request_that_is_stored_which_fences_off_the_producer_before(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await bridge.produce(stream, "a", first=1, epoch=1)
        assert (await refused(bridge.produce(stream, "x", first=5, epoch=2))).reason == "SEQUENCE_GAP"
        await bridge.keep_alive(stream, epoch=2)
        await bridge.produce(stream, "b", first=2, epoch=1)
        await bridge.produce(stream, "c", first=3, epoch=2)
        assert (await refused(bridge.produce(stream, "x", first=4, epoch=1))).reason == "FENCED"


class TestSilenceOnPurpose:
    async def test_keep_alive_tells_for_how_long_the_producer_may_be_silent(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await bridge.create(stream)
        limit = await bridge.keep_alive(stream, epoch=1, by="p")
        assert limit > 0
        known = bridge.instance.settings.get("LLMBRIDGE_PRODUCER_LOST_MS")
        assert known is None or limit == int(known)

    async def test_create_the_stream_and_call_keep_alive_at_a_quarter_of_the_limit(self, hasty: Caller) -> None:
        alive, forgotten = new_stream(), new_stream()
        for stream in (alive, forgotten):
            await hasty.create(stream, retention_ms=60_000)
        limit = await hasty.keep_alive(alive)
        begun = time.monotonic()
        # The one that nobody keeps alive shows that the bridge has looked.
        while (await hasty.info(forgotten)).state != STREAM_STATE_SEALED or time.monotonic() < begun + limit / 800:
            assert await hasty.keep_alive(alive) == limit
            await asyncio.sleep(limit / 4_000)
            assert time.monotonic() < begun + 15, "nobody was found lost"
        await hasty.produce(alive, "late", first=1, end=STOP)
        assert (await hasty.info(forgotten)).sealer == SEALER_LOST
        told = await refused(hasty.keep_alive(forgotten))
        assert told.metadata == {"finish_reason": "FINISH_REASON_ERROR", "sealer": "SEALER_LOST"}

    async def test_it_tells_at_once_when_the_stream_was_cancelled_or_taken_over(self, bridge: Caller) -> None:
        cancelled, taken = new_stream(), new_stream()
        for stream in (cancelled, taken):
            await bridge.produce(stream, "a", first=1, epoch=1)
        await bridge.cancel(cancelled)
        await bridge.produce(taken, "b", first=2, epoch=2)
        told = await refused(bridge.keep_alive(cancelled, epoch=1))
        assert told.short == ("FAILED_PRECONDITION", "COMPLETED", CANCELLED)
        told = await refused(bridge.keep_alive(taken, epoch=1))
        assert told.short == ("FAILED_PRECONDITION", "FENCED", {"epoch": "2"})

    async def test_the_stream_must_exist(self, bridge: Caller, stream: StreamRef) -> None:
        told = await refused(bridge.keep_alive(stream))
        assert (told.code, told.reason) == ("NOT_FOUND", "STREAM_NOT_FOUND")


class TestStopping:
    @pytest.mark.parametrize("by", ["produce", "keep alive"])
    async def test_cancel_seals_every_reader_sees_it_and_the_producer_learns_of_it_by_completed(
        self, bridge: Caller, second: Caller, stream: StreamRef, by: str
    ) -> None:
        await bridge.produce(stream, *"ab", first=1)
        readers = [await (await caller.subscribe(stream)).through(2) for caller in (bridge, second)]
        done = await second.cancel(stream, "enough")
        assert (done.last_sequence, done.finish_reason, done.sealer) == (3, FINISH_REASON_CANCELLED, SEALER_CANCEL)
        assert done.sealed_now
        for reader in readers:
            await reader.to_the_end()
            assert reader.completion == Completion(finish_reason=FINISH_REASON_CANCELLED, error_message="enough")
            assert reader.cursor == done.cursor
        call = bridge.produce(stream, "c", first=3) if by == "produce" else bridge.keep_alive(stream)
        told = await refused(call)
        assert told.short == ("FAILED_PRECONDITION", "COMPLETED", CANCELLED)

    async def test_cancelling_a_sealed_stream_changes_nothing_and_tells_how_it_had_ended(self, bridge: Caller) -> None:
        cancelled, stopped = new_stream(), new_stream()
        first = await bridge.cancel(cancelled, "one")
        end = await bridge.produce(stopped, "a", first=1, end=STOP)
        again = await bridge.cancel(cancelled, "two")
        assert (again.sealed_now, again.cursor, again.last_sequence) == (False, first.cursor, first.last_sequence)
        assert (again.finish_reason, again.sealer) == (FINISH_REASON_CANCELLED, SEALER_CANCEL)
        told = await bridge.cancel(stopped)
        assert (told.sealed_now, told.cursor, told.last_sequence) == (False, end.cursor, 2)
        assert (told.finish_reason, told.sealer) == (FINISH_REASON_STOP, SEALER_PRODUCER)
        completion = (await bridge.read_all(cancelled)).completion
        assert completion is not None
        assert completion.error_message == "one"

    async def test_cancelling_a_stream_that_does_not_exist_creates_it_sealed(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        waiting = await bridge.subscribe(stream)
        done = await bridge.cancel(stream, "not wanted")
        assert (done.last_sequence, done.sealed_now) == (1, True)
        await waiting.to_the_end()
        assert (waiting.texts, waiting.cursor) == ([], done.cursor)
        told = await refused(bridge.produce(stream, "a", first=1))
        assert told.short == ("FAILED_PRECONDITION", "COMPLETED", CANCELLED)

    async def test_of_many_cancels_at_once_one_seals(self, bridge: Caller, second: Caller, stream: StreamRef) -> None:
        await bridge.produce(stream, "a", first=1)
        answers = await asyncio.gather(*((bridge, second)[i % 2].cancel(stream, str(i)) for i in range(10)))
        assert sum(answer.sealed_now for answer in answers) == 1
        assert {(answer.cursor, answer.last_sequence) for answer in answers} == {(answers[0].cursor, 2)}
