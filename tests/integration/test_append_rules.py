"""The decision table in Redis: the shared cases against lua/append.lua, and once more through Produce."""

import secrets

import grpc
import pytest

from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason, Sealer
from llmbridge.sequencing import Decision
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeRequest
from llmbridge.v1.stream_pb2 import StreamRef
from tests.support.append_cases import CASES, Case, request
from tests.support.calls import Failure, failure, failure_of
from tests.support.log_parts import LogParts, log_parts
from tests.support.model_log import ModelLog, Outcome
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, keys_without_expiry, running_bridge


def _named(case: Case) -> StreamName:
    return StreamName(case.name, "m")


async def _prepare(parts: LogParts, case: Case) -> ModelLog:
    model = ModelLog()
    for step in case.before:
        model.store(step)
        await parts.store(_named(case), step)
    return model


async def test_the_script_decides_as_the_table_says_and_stores_only_what_it_appends(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    wrong = {}
    async with log_parts(each_redis.url, key_prefix) as parts:
        for case in CASES:
            model = await _prepare(parts, case)
            outcome = await parts.append(_named(case), case.request)
            if outcome.decision is Decision.APPEND:
                model.store(case.request)
            stored = await parts.entries(_named(case))
            if outcome != case.outcome or stored != model.entries or not outcome.vouched_by(stored):
                wrong[case.name] = (outcome, case.outcome, stored)
    assert wrong == {}
    assert await keys_without_expiry(each_redis.url, key_prefix) == []


async def test_the_open_index_names_exactly_the_open_streams(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        open_names = set()
        for case in CASES:
            model = await _prepare(parts, case)
            await parts.append(_named(case), case.request)
            model.append(case.request)
            if model.entries and not model.sealed:
                open_names.add(_named(case))
        found = [stream.name for p in range(4) for stream in (await parts.open_streams.sweep(p, "", 1000)).streams]
        assert len(found) == len(set(found))
        assert set(found) == open_names


async def test_a_cursor_vouches_for_all_that_came_before_it(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        checksums = set()
        # The same last entry, at the same place, in logs that differ before it: by content, or by what was one entry.
        for number, texts in enumerate((("a", "b", "z"), ("a", "c", "z"), ("ab", "z"))):
            name = StreamName("s", "m", str(number))
            for text in texts:
                outcome = await parts.append(name, request(0, text))
            assert outcome.answer == (3,)
            checksums.add(outcome.checksum)
        assert len(checksums) == 3


def _to_proto(name: StreamName, asked: Append) -> ProduceRequest:
    # The numbers of tokens and completion are the same in both messages.
    message = ProduceRequest.FromString(asked.fragment)
    message.stream.CopyFrom(StreamRef(session_id=name.session_id, model_id=name.model_id))
    message.first_sequence = asked.first
    message.producer_epoch = asked.producer.epoch
    message.producer_id = asked.producer.id
    return message


def _outcome_of(refusal: Failure) -> Outcome:
    told = refusal.metadata
    match refusal.reason:
        case "SEQUENCE_GAP":
            return Outcome(Decision.GAP, (int(told["expected"]),))
        case "FENCED":
            return Outcome(Decision.FENCED, (int(told["epoch"]),))
        case "SEQUENCE_CONFLICT":
            return Outcome(Decision.CONFLICT, (int(told["sequence"]),))
        case "COMPLETED":
            finish = FinishReason[told["finish_reason"].removeprefix("FINISH_REASON_")]
            return Outcome(Decision.COMPLETED, (finish, Sealer[told["sealer"].removeprefix("SEALER_")]))
    raise AssertionError(refusal)


CODES = {
    Decision.APPEND: grpc.StatusCode.OK,
    Decision.DUPLICATE: grpc.StatusCode.OK,
    Decision.GAP: grpc.StatusCode.ABORTED,
    Decision.FENCED: grpc.StatusCode.FAILED_PRECONDITION,
    Decision.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Decision.COMPLETED: grpc.StatusCode.FAILED_PRECONDITION,
}


async def _produce(bridge: RunningBridge, name: StreamName, asked: Append) -> tuple[grpc.StatusCode, Outcome]:
    try:
        done = await bridge.bridge.Produce(_to_proto(name, asked))
    except grpc.aio.AioRpcError as error:
        refusal = failure_of(error)
        return refusal.code, _outcome_of(refusal)
    cursor = Cursor.parse(done.cursor)
    assert done.last_sequence == cursor.sequence
    decision = Decision.DUPLICATE if done.duplicate else Decision.APPEND
    return grpc.StatusCode.OK, Outcome(decision, (cursor.sequence,), cursor.checksum)


async def test_produce_answers_as_the_table_says(each_redis: RedisProcess, key_prefix: str) -> None:
    wrong = {}
    async with (
        running_bridge(each_redis.url, key_prefix=key_prefix, partitions=4) as bridge,
        log_parts(each_redis.url, key_prefix) as parts,
    ):
        for case in CASES:
            model = await _prepare(parts, case)
            code, outcome = await _produce(bridge, _named(case), case.request)
            expected = model.produce(case.request)
            stored = await parts.entries(_named(case))
            answered = (code, outcome, stored, outcome.vouched_by(stored))
            if answered != (CODES[expected.decision], expected, model.entries, True):
                wrong[case.name] = (answered, expected)
    assert wrong == {}


@pytest.mark.parametrize("producer_id", ["", "é:{}% \x00\n", "x" * 64])
async def test_any_producer_id_tells_producers_apart(bridge: RunningBridge, producer_id: str) -> None:
    stream = StreamRef(session_id=secrets.token_hex(4), model_id="m")
    first = ProduceRequest.FromString(CASES[1].request.fragment)
    first.MergeFrom(ProduceRequest(stream=stream, first_sequence=1, producer_epoch=7, producer_id=producer_id))
    await bridge.bridge.Produce(first)
    again = await bridge.bridge.Produce(first)
    assert again.duplicate
    first.producer_id = "another"
    assert (await failure(bridge.bridge.Produce(first))).reason == "FENCED"


async def test_what_produce_sliced_and_appended_is_read_back_once_in_order(bridge: RunningBridge) -> None:
    stream = StreamRef(session_id="overlaps", model_id="m")
    name = StreamName("overlaps", "m")
    for first, text, finish in ((1, "ab", None), (2, "bcd", None), (1, "abcdef", None), (4, "def", FinishReason.STOP)):
        await bridge.bridge.Produce(_to_proto(name, request(first, text, finish)))
    messages = [message async for message in bridge.bridge.Subscribe(SubscribeRequest(stream=stream))]
    assert "".join(token.text for message in messages for token in message.tokens) == "abcdef"
    assert messages[-1].HasField("completion")
