"""docs/protocol.md, "Producing": the table of what a stream answers to a request, row by row."""

import pytest

from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.stream_pb2 import SEALER_PRODUCER, STREAM_STATE_OPEN, StreamRef
from llmbridge.v1.token_pb2 import (
    FINISH_REASON_LENGTH,
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Completion,
    Generation,
    Token,
    ToolCall,
    Usage,
)
from tests.conformance.caller import STOP, Caller, refused

COMPLETED_BY_PRODUCER = {"finish_reason": "FINISH_REASON_STOP", "sealer": "SEALER_PRODUCER"}


@pytest.fixture
async def begun(bridge: Caller, stream: StreamRef) -> StreamRef:
    """A stream with the entries ab, c and de, by producer p with epoch 3."""
    for first, texts in ((1, "ab"), (3, "c"), (4, "de")):
        await bridge.produce(stream, *texts, first=first, epoch=3, by="p")
    return stream


@pytest.fixture
async def sealed(bridge: Caller, begun: StreamRef) -> StreamRef:
    """The same, and its end as record 7, with the token f in one entry."""
    await bridge.produce(begun, "f", first=6, end=STOP, epoch=3, by="p")
    return begun


async def text_of(bridge: Caller, stream: StreamRef) -> str:
    """Read all that is stored."""
    reader = await (await bridge.subscribe(stream)).through((await bridge.info(stream)).last_sequence)
    await reader.leave()
    return reader.text


@pytest.mark.parametrize("first", [1, 0])
async def test_absent__begins_at_1_or_0__is_stored_and_the_stream_is_created(
    bridge: Caller, stream: StreamRef, first: int
) -> None:
    answer = await bridge.produce(stream, "a", "b", first=first)
    assert (answer.last_sequence, answer.duplicate) == (2, False)
    info = await bridge.info(stream)
    assert (info.state, info.first_sequence, info.last_sequence) == (STREAM_STATE_OPEN, 1, 2)
    assert info.cursor == answer.cursor


async def test_absent__completes_at_once__is_stored(bridge: Caller, stream: StreamRef) -> None:
    assert (await bridge.produce(stream, first=1, end=STOP)).last_sequence == 1
    reader = await bridge.read_all(stream)
    assert (reader.texts, reader.completion) == ([], STOP)


async def test_absent__begins_later__is_sequence_gap_with_expected_1(bridge: Caller, stream: StreamRef) -> None:
    refusal = await refused(bridge.produce(stream, "x", first=2))
    assert refusal.short == ("ABORTED", "SEQUENCE_GAP", {"expected": "1", "received": "2"})
    assert (await refused(bridge.info(stream))).reason == "STREAM_NOT_FOUND"


@pytest.mark.parametrize("first", [1, 0])
@pytest.mark.parametrize(("epoch", "by"), [(0, ""), (0, "q"), (7, "q")])
async def test_open_without_a_token__begins_at_1_or_0__is_stored_whoever_sends_it(
    bridge: Caller, stream: StreamRef, first: int, epoch: int, by: str
) -> None:
    await bridge.create(stream)
    answer = await bridge.produce(stream, "a", first=first, epoch=epoch, by=by)
    assert (answer.last_sequence, answer.duplicate) == (1, False)
    assert (await bridge.info(stream)).producer_epoch == epoch


async def test_open_without_a_token__anything_else__is_sequence_gap_with_expected_1(
    bridge: Caller, stream: StreamRef
) -> None:
    await bridge.create(stream)
    refusal = await refused(bridge.produce(stream, "x", first=2))
    assert refusal.short == ("ABORTED", "SEQUENCE_GAP", {"expected": "1", "received": "2"})


@pytest.mark.parametrize("first", [6, 0, 4, 1, 9])
@pytest.mark.parametrize(
    ("epoch", "by"), [(2, "p"), (0, "p"), (0, ""), (3, "q"), (3, "")], ids=["lower", "none", "nobody", "other", "no id"]
)
async def test_open__lower_epoch_or_same_epoch_with_another_id__is_fenced(
    bridge: Caller, begun: StreamRef, first: int, epoch: int, by: str
) -> None:
    refusal = await refused(bridge.produce(begun, "x", first=first, epoch=epoch, by=by))
    assert refusal.short == ("FAILED_PRECONDITION", "FENCED", {"epoch": "3"})
    assert await text_of(bridge, begun) == "abcde"


@pytest.mark.parametrize(
    ("first", "texts"),
    [(1, "ab"), (3, "c"), (4, "de"), (1, "abcde"), (1, "a"), (2, "b"), (2, "bc"), (2, "bcd"), (5, "e")],
)
async def test_open__same_producer_all_of_it_stored_already__is_ok_and_duplicate(
    bridge: Caller, begun: StreamRef, first: int, texts: str
) -> None:
    answer = await bridge.produce(begun, *texts, first=first, epoch=3, by="p")
    # An answer is always about the last record of the request.
    assert (answer.duplicate, answer.last_sequence) == (True, first + len(texts) - 1)
    assert await text_of(bridge, begun) == "abcde"
    rest = await bridge.subscribe(begun, last=answer.last_sequence, after_cursor=answer.cursor)
    await bridge.produce(begun, first=6, end=STOP, epoch=3, by="p")
    assert (await rest.to_the_end()).text == "abcde"[answer.last_sequence :]


@pytest.mark.parametrize(
    ("first", "texts", "end"),
    [(1, "ax", None), (3, "x", None), (4, "dx", None), (3, "", STOP), (4, "d", STOP), (1, "a", STOP)],
)
async def test_open__same_producer_with_other_content__is_sequence_conflict(
    bridge: Caller, begun: StreamRef, first: int, texts: str, end: Completion | None
) -> None:
    refusal = await refused(bridge.produce(begun, *texts, first=first, end=end, epoch=3, by="p"))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "SEQUENCE_CONFLICT")
    assert first <= int(refusal.metadata["sequence"]) <= first + len(texts)
    assert await text_of(bridge, begun) == "abcde"


@pytest.mark.parametrize(("first", "texts"), [(5, "ef"), (4, "def"), (1, "abcdefg"), (2, "bcdef")])
@pytest.mark.parametrize("end", [None, STOP], ids=["goes on", "ends"])
async def test_open__same_producer_first_part_stored_already__stores_the_rest(
    bridge: Caller, begun: StreamRef, first: int, texts: str, end: Completion | None
) -> None:
    answer = await bridge.produce(begun, *texts, first=first, end=end, epoch=3, by="p")
    last = first + len(texts) - 1
    assert (answer.duplicate, answer.last_sequence) == (False, last + (end is not None))
    assert await text_of(bridge, begun) == "abcdefg"[:last]


@pytest.mark.parametrize("first", [6, 0])
@pytest.mark.parametrize(("epoch", "by"), [(3, "p"), (4, "p"), (4, "q"), (2**53 - 1, "")])
async def test_open__same_producer_or_higher_epoch_right_after_the_last_record__is_stored(
    bridge: Caller, begun: StreamRef, first: int, epoch: int, by: str
) -> None:
    answer = await bridge.produce(begun, "f", first=first, epoch=epoch, by=by)
    assert (answer.duplicate, answer.last_sequence) == (False, 6)
    assert await text_of(bridge, begun) == "abcdef"
    assert (await bridge.info(begun)).producer_epoch == epoch


@pytest.mark.parametrize(
    ("first", "epoch"),
    [(7, 3), (100, 3), (7, 4), (5, 4), (1, 4)],
    ids=["a hole", "a large hole", "a hole by a successor", "overlap by a successor", "repetition by a successor"],
)
async def test_open__anything_else__is_sequence_gap_with_the_next_sequence(
    bridge: Caller, begun: StreamRef, first: int, epoch: int
) -> None:
    refusal = await refused(bridge.produce(begun, "a", "b", first=first, epoch=epoch, by="p"))
    assert refusal.short == ("ABORTED", "SEQUENCE_GAP", {"expected": "6", "received": str(first)})
    # What is refused takes nothing over.
    await bridge.produce(begun, "f", first=6, epoch=3, by="p")


@pytest.mark.parametrize(
    ("first", "texts", "end"),
    [(6, "f", STOP), (7, "", STOP), (1, "abcdef", STOP), (1, "ab", None), (4, "de", None), (6, "f", None)],
)
async def test_sealed__repeats_what_the_same_producer_stored__is_ok_and_duplicate(
    bridge: Caller, sealed: StreamRef, first: int, texts: str, end: Completion | None
) -> None:
    answer = await bridge.produce(sealed, *texts, first=first, end=end, epoch=3, by="p")
    assert (answer.duplicate, answer.last_sequence) == (True, first + len(texts) - (end is None))
    rest = await bridge.read_all(sealed, last=answer.last_sequence, after_cursor=answer.cursor)
    assert rest.text == "abcdef"[answer.last_sequence :]


@pytest.mark.parametrize(
    ("first", "texts", "end", "epoch", "by"),
    [
        (8, "x", None, 3, "p"),
        (0, "x", None, 3, "p"),
        (9, "x", None, 3, "p"),
        (8, "", STOP, 3, "p"),
        (7, "x", None, 3, "p"),
        (7, "", Completion(finish_reason=FINISH_REASON_LENGTH), 3, "p"),
        (6, "f", STOP, 3, "q"),
        (6, "f", STOP, 4, "p"),
        (1, "ab", None, 2, "p"),
        (8, "x", None, 4, "q"),
        (0, "x", None, 0, ""),
    ],
)
async def test_sealed__anything_else__is_completed_with_finish_reason_and_sealer(
    bridge: Caller, sealed: StreamRef, first: int, texts: str, end: Completion | None, epoch: int, by: str
) -> None:
    refusal = await refused(bridge.produce(sealed, *texts, first=first, end=end, epoch=epoch, by=by))
    assert refusal.short == ("FAILED_PRECONDITION", "COMPLETED", COMPLETED_BY_PRODUCER)
    info = await bridge.info(sealed)
    assert (info.last_sequence, info.sealer) == (7, SEALER_PRODUCER)


async def test_first_sequence_0_lets_the_bridge_number_and_does_not_protect_from_storing_twice(
    bridge: Caller, stream: StreamRef
) -> None:
    for expected in (2, 4, 6):
        answer = await bridge.produce(stream, "a", "b", by="p")
        assert (answer.last_sequence, answer.duplicate) == (expected, False)
    await bridge.produce(stream, end=STOP, by="p")
    assert (await bridge.read_all(stream)).text == "ababab"


async def test_what_arrives_while_a_call_is_in_flight_goes_with_the_next(bridge: Caller, stream: StreamRef) -> None:
    # Token by token or all at once: what is stored is the same.
    stored, written = 0, 0
    text = "".join(f"{i}," for i in range(40))
    while stored < len(text):
        written = min(written + 1 + stored % 7, len(text))
        answer = await bridge.produce(stream, *text[stored:written], first=stored + 1)
        stored = answer.last_sequence
    await bridge.produce(stream, first=stored + 1, end=STOP)
    assert (await bridge.read_all(stream)).text == text


async def test_tokens_are_delivered_as_they_came(bridge: Caller, stream: StreamRef) -> None:
    tokens = [
        Token(text="", role=ROLE_ASSISTANT, generation=Generation(model="x", temperature=0.5, max_tokens=9)),
        Token(text="é🙂\0\n", role=ROLE_USER),
        Token(reasoning="hm", role=ROLE_ASSISTANT),
        Token(tool_call=ToolCall(index=1, id="c", name="f", arguments='{"a":'), role=ROLE_SYSTEM),
        Token(json='{"a": [1, null]}', role=ROLE_TOOL, attributes={"k": "v", "": ""}),
    ]
    for i, token in enumerate(tokens):
        token.timestamp_ms = 5 + i
    if bridge.transport.tells_what_was_not_said:
        tokens += [Token(text="plain"), Token(tool_call=ToolCall(arguments="1}")), Token(json="null")]
    end = Completion(
        finish_reason=FINISH_REASON_LENGTH,
        usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, reasoning_tokens=1, cached_tokens=1),
        attributes={"k": "v"},
    )
    await bridge.call(ProduceRequest(stream=stream, tokens=tokens, completion=end, first_sequence=1))
    reader = await bridge.subscribe(stream)
    received: list[Token] = []
    while reader.completion is None:
        message = await reader.call.next()
        reader.take(message)
        received += message.tokens
    assert received == tokens
    assert reader.completion == end
