"""Fragments: what is stored of a request, joined to messages and sliced, is what the producer sent; nothing else."""

from dataclasses import replace

import pytest
from google.protobuf.message import Message
from hypothesis import event, given
from hypothesis import strategies as st

from llmbridge.errors import InvalidField, LimitExceeded
from llmbridge.model.records import MAX_SEQUENCE, Append, FinishReason, Producer, checksum_of
from llmbridge.rpc.convert import finish_reason_to_proto
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.produce import decode_append
from llmbridge.rpc.records import decode_records, is_plain_text
from llmbridge.rpc.wire import ProtoWire
from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeResponse, WriterAppend
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import Completion, Generation, Role, Token, ToolCall, Usage

WIRE = ProtoWire()
LIMITS = Limits(
    max_request_bytes=262_144,
    max_token_bytes=200,
    max_tokens_per_request=8,
    max_id_bytes=256,
    max_retention_ms=1,
    consumer_group="g",
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
CONTENTS = st.one_of(
    st.builds(lambda text: Token(text=text), TEXTS),
    st.builds(lambda text: Token(reasoning=text), TEXTS),
    st.builds(
        lambda *call: Token(tool_call=ToolCall(index=call[0], id=call[1], arguments=call[2])),
        st.integers(0, 9),
        TEXTS,
        TEXTS,
    ),
    st.sampled_from(['{"a": [1, "\\ud83d\\ude42"]}', "null", " 1e9 "]).map(lambda text: Token(json=text)),
)


@st.composite
def tokens(draw: st.DrawFn) -> Token:
    token = draw(CONTENTS)
    token.role = draw(st.sampled_from(Role.values()))
    token.timestamp_ms = draw(st.integers(-(2**63), 2**63 - 1))
    token.attributes.update(draw(st.dictionaries(TEXTS, TEXTS, max_size=3)))
    if draw(st.booleans()):
        token.generation.CopyFrom(Generation(model=draw(TEXTS), temperature=draw(st.sampled_from([0.0, 0.7]))))
    return token


@st.composite
def produce_requests(draw: st.DrawFn) -> ProduceRequest:
    request = ProduceRequest(
        stream=StreamRef(session_id="s", model_id="m"),
        tokens=draw(st.lists(tokens(), max_size=4)),
        first_sequence=draw(st.integers(0, 9)),
        producer_epoch=draw(st.integers(0, 9)),
        producer_id=draw(TEXTS),
    )
    if not request.tokens or draw(st.booleans()):
        reason = finish_reason_to_proto(draw(st.sampled_from(FinishReason)))
        request.completion.CopyFrom(Completion(finish_reason=reason, error_message=draw(TEXTS), usage=Usage()))
    return request


def _records(message: Message) -> tuple[list[Token], Completion | None]:
    assert isinstance(message, ProduceRequest | SubscribeResponse)
    return list(message.tokens), message.completion if message.HasField("completion") else None


def _decode(request: ProduceRequest, limits: Limits = LIMITS) -> Append:
    # Decoding consumes the request.
    copy = ProduceRequest()
    copy.CopyFrom(request)
    return decode_append(copy, limits)


@given(produce_requests())
def test_a_fragment_holds_the_records_and_nothing_else(request: ProduceRequest) -> None:
    append = _decode(request)
    read = SubscribeResponse.FromString(append.fragment)
    assert _records(read) == _records(request)
    assert {field.name for field, _ in read.ListFields()} <= {"tokens", "completion"}
    assert append.records == len(request.tokens) + request.HasField("completion")
    assert (append.first, append.producer) == (
        request.first_sequence,
        Producer(request.producer_epoch, request.producer_id),
    )


@given(produce_requests())
def test_an_append_of_many_is_stored_as_a_request_of_its_own_would_be(request: ProduceRequest) -> None:
    of_many = WriterAppend(tokens=request.tokens, writer=3, first_sequence=request.first_sequence, append_id=2**64 - 1)
    if request.HasField("completion"):
        of_many.completion.CopyFrom(request.completion)
    expected = _decode(request)
    assert decode_records(of_many, expected.producer, LIMITS) == expected


PLAIN = {"text", "role", "timestamp_ms"}
TIMES = st.one_of(st.sampled_from([0, 2**35 - 1, 2**35, 2**42 - 1, 2**42, -1]), st.integers(2**35, 2**42))


@given(tokens(), TIMES)
def test_what_is_plain_text_is_seen_in_its_encoding(token: Token, time_ms: int) -> None:
    token.timestamp_ms = time_ms
    is_plain = {field.name for field, _ in token.ListFields()} <= PLAIN
    in_six_bytes = time_ms == 0 or 2**35 <= time_ms < 2**42
    encoded = WriterAppend(tokens=[token], writer=1, first_sequence=2, append_id=3).SerializeToString()
    seen = is_plain_text(encoded)
    event("plain" if seen else "not plain")
    assert seen == (is_plain and token.HasField("text") and in_six_bytes)


@pytest.mark.parametrize(("length", "is_short"), [(125, True), (126, False), (200, False), (20_000, False)])
def test_only_short_text_is_plain(length: int, is_short: bool) -> None:
    text = "x" * length
    assert is_plain_text(SubscribeResponse(tokens=[Token(text=text)]).SerializeToString()) == is_short
    request = ProduceRequest(tokens=[Token(text=text)])
    expected = SubscribeResponse(tokens=request.tokens).SerializeToString()
    assert _decode(request, replace(LIMITS, max_token_bytes=30_000)).fragment == expected


def test_short_text_has_the_limits_of_all() -> None:
    with pytest.raises(LimitExceeded, match="max_token_bytes"):
        _decode(ProduceRequest(tokens=[Token(text="x" * 20)]), replace(LIMITS, max_token_bytes=21))


@given(st.lists(produce_requests(), min_size=1, max_size=3), st.integers(0, MAX_SEQUENCE), st.integers(0, 2**62))
def test_a_message_is_its_fragments_one_after_the_other(
    requests: list[ProduceRequest], first: int, appended_ms: int
) -> None:
    fragments = [_decode(request).fragment for request in requests]
    message = SubscribeResponse.FromString(WIRE.message(fragments, first, "cursor", appended_ms))
    assert list(message.tokens) == [token for request in requests for token in request.tokens]
    assert (message.first_sequence, message.cursor, message.appended_ms) == (first, "cursor", appended_ms)


@given(produce_requests(), st.integers(0, 5))
def test_skipping_drops_the_first_records(request: ProduceRequest, count: int) -> None:
    append = _decode(request)
    left = SubscribeResponse.FromString(WIRE.skip(append.fragment, min(count, append.records)))
    expected = [*request.tokens, *([request.completion] if request.HasField("completion") else [])][count:]
    assert [*left.tokens, *([left.completion] if left.HasField("completion") else [])] == expected


@given(produce_requests(), st.integers(0, 4))
def test_a_sliced_request_has_the_checksum_of_one_that_began_there(request: ProduceRequest, count: int) -> None:
    rest = ProduceRequest()
    rest.CopyFrom(request)
    del rest.tokens[:count]
    if not rest.tokens and not rest.HasField("completion"):
        return
    skipped = WIRE.skip(_decode(request).fragment, min(count, len(request.tokens)))
    assert checksum_of(skipped) == checksum_of(_decode(rest).fragment)


def test_a_retry_that_encodes_a_map_in_another_order_is_the_same_fragment() -> None:
    names = [f"name {i}" for i in range(20)]
    one, other = (
        ProduceRequest(tokens=[Token(text="x", attributes=dict.fromkeys(order, "v"))])
        for order in (names, reversed(names))
    )
    limits = replace(LIMITS, max_token_bytes=2_000)
    assert _decode(one, limits).fragment == _decode(other, limits).fragment


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize("number", [4, 5, 9, 15])
def test_a_producer_can_not_speak_as_the_bridge(number: int) -> None:
    # 4 is SubscribeResponse's cursor, and producer_epoch here: of another type, so that parsing keeps it as unknown.
    hostile = ProduceRequest(tokens=[Token(text="x")]).SerializeToString() + _field(number, b"1-9-ffffffff")
    append = decode_append(ProduceRequest.FromString(hostile), LIMITS)
    assert append.fragment == SubscribeResponse(tokens=[Token(text="x")]).SerializeToString()


def test_unknown_fields_inside_a_token_are_dropped() -> None:
    inner = Token(text="x").SerializeToString() + _field(15, b"hidden")
    append = decode_append(ProduceRequest.FromString(_field(1, inner)), LIMITS)
    assert append.fragment == SubscribeResponse(tokens=[Token(text="x")]).SerializeToString()


@pytest.mark.parametrize("reason", FinishReason)
def test_the_bridges_own_completion(reason: FinishReason) -> None:
    read = SubscribeResponse.FromString(WIRE.completion(reason, "why"))
    expected = Completion(finish_reason=finish_reason_to_proto(reason), error_message="why")
    assert read == SubscribeResponse(completion=expected)


def test_a_heartbeat_has_only_a_cursor() -> None:
    assert SubscribeResponse.FromString(WIRE.heartbeat("c")) == SubscribeResponse(cursor="c")
    assert WIRE.heartbeat("") == b""


STOP = Completion(finish_reason=finish_reason_to_proto(FinishReason.STOP))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ProduceRequest(), "tokens"),
        (ProduceRequest(tokens=[Token(text="a"), Token()]), "tokens[1].content"),
        (ProduceRequest(tokens=[Token(text="a", role=99)]), "tokens[0].role"),  # type: ignore[arg-type]
        (ProduceRequest(tokens=[Token(json="")]), "tokens[0].json"),
        (ProduceRequest(tokens=[Token(json="{")]), "tokens[0].json"),
        (ProduceRequest(tokens=[Token(json="NaN")]), "tokens[0].json"),
        (ProduceRequest(tokens=[Token(json="1 2")]), "tokens[0].json"),
        (ProduceRequest(tokens=[Token(json="[" * 199)]), "tokens[0].json"),
        (ProduceRequest(completion=Completion()), "completion.finish_reason"),
        (ProduceRequest(completion=Completion(finish_reason=99)), "completion.finish_reason"),  # type: ignore[arg-type]
        (ProduceRequest(completion=STOP, first_sequence=MAX_SEQUENCE + 1), "first_sequence"),
        (ProduceRequest(tokens=[Token(text="a")], completion=STOP, first_sequence=MAX_SEQUENCE), "first_sequence"),
        (ProduceRequest(completion=STOP, first_sequence=2**64 - 1), "first_sequence"),
        (ProduceRequest(completion=STOP, producer_epoch=MAX_SEQUENCE + 1), "producer_epoch"),
        (ProduceRequest(completion=STOP, producer_id="é" * 33), "producer_id"),
    ],
)
def test_what_is_refused(request_: ProduceRequest, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        _decode(request_)
    assert refused.value.metadata == {"field": field}


def test_the_largest_numbers_are_taken() -> None:
    append = _decode(
        ProduceRequest(completion=STOP, first_sequence=MAX_SEQUENCE, producer_epoch=MAX_SEQUENCE, producer_id="é" * 32)
    )
    assert (append.first, append.producer.epoch, append.tokens) == (MAX_SEQUENCE, MAX_SEQUENCE, 0)


def test_tokens_are_limited_in_number_and_size() -> None:
    eight = [Token(text="a")] * 8
    assert _decode(ProduceRequest(tokens=eight)).tokens == 8
    with pytest.raises(LimitExceeded) as many:
        _decode(ProduceRequest(tokens=[*eight, Token(text="a")]))
    assert many.value.metadata == {"limit": "max_tokens_per_request", "maximum": "8", "value": "9"}
    largest = Token(text="a" * 100, attributes={"b": "c" * (200 - 102 - 7)})
    assert largest.ByteSize() == LIMITS.max_token_bytes
    assert _decode(ProduceRequest(tokens=[largest])).tokens == 1
    largest.text += "a"
    with pytest.raises(LimitExceeded) as large:
        _decode(ProduceRequest(tokens=[Token(text="a"), largest]))
    assert large.value.metadata == {"limit": "max_token_bytes", "maximum": "200", "value": "201"}
