"""Responses to many subscriptions, encoded by hand: the generated code must read what was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbridge.errors import Disconnected
from llmbridge.rpc.deliveries import ProtoDeliveries
from llmbridge.rpc.protobuf import SHORT, VARINTS, encoded_varint
from llmbridge.rpc.status import failure_of
from llmbridge.rpc.wire import ProtoWire
from llmbridge.v1.bridge_service_pb2 import Delivery, Failure, SubscribeManyResponse, SubscribeResponse
from llmbridge.v1.token_pb2 import Token

DELIVERIES = ProtoDeliveries()
numbers = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300, unique=True)


def message_of(size: int) -> bytes:
    """A message of about so many bytes."""
    return SubscribeResponse(tokens=[Token(text="x" * size)], cursor="c").SerializeToString()


@given(numbers, st.sampled_from((0, 1, 50, 100, 127, 128, 3_900, SHORT - 20, SHORT, 20_000, 300_000)))
def test_messages_are_embedded_as_they_are(subscriptions: list[int], size: int) -> None:
    message, recipients = message_of(size), DELIVERIES.recipients(subscriptions)
    other = message_of(3)
    raw = b"".join((DELIVERIES.head(recipients, len(message)), message, DELIVERIES.head(recipients, len(other)), other))
    response = SubscribeManyResponse.FromString(raw)
    assert [list(delivery.subscriptions) for delivery in response.deliveries] == [subscriptions] * 2
    assert [delivery.message.SerializeToString() for delivery in response.deliveries] == [message, other]
    assert raw == response.SerializeToString()


@given(numbers)
def test_events_join_messages(subscriptions: list[int]) -> None:
    recipients = DELIVERIES.recipients(subscriptions)
    error = Disconnected("a cursor")
    raw = DELIVERIES.attached(recipients) + DELIVERIES.end(recipients, error) + DELIVERIES.end(recipients, None)
    attached, failed, ended = SubscribeManyResponse.FromString(raw).deliveries
    assert attached.WhichOneof("event") == "attached"
    assert failed == Delivery(subscriptions=subscriptions, end=failure_of(error))
    assert ended == Delivery(subscriptions=subscriptions, end=Failure())
    assert ended.WhichOneof("event") == "end"


@pytest.mark.parametrize("number", [0, 1, 127, 128, SHORT - 1, SHORT, 2**21, 2**41 + 3, 2**53 - 1])
def test_numbers(number: int) -> None:
    expected = SubscribeResponse(first_sequence=number).SerializeToString()[1:]
    assert (encoded_varint(number) if number else b"") == expected
    if 0 < number < SHORT:
        assert VARINTS[number] == expected


@given(
    st.lists(st.text(max_size=40), max_size=5),
    st.sampled_from((0, 1, SHORT - 1, SHORT, 2**40, 2**53 - 1)),
    st.sampled_from(("", "1758300000000000-123-0badcafe")),
    st.sampled_from((0, 1, 1_758_300_000_123, 1_758_300_000_124)),
)
def test_a_message_is_what_the_generated_code_makes_of_it(texts: list[str], first: int, cursor: str, ms: int) -> None:
    expected = SubscribeResponse(
        tokens=[Token(text=text) for text in texts], first_sequence=first, cursor=cursor, appended_ms=ms
    )
    fragments = [SubscribeResponse(tokens=[token]).SerializeToString() for token in expected.tokens]
    wire = ProtoWire()
    for _ in range(2):
        assert SubscribeResponse.FromString(wire.message(fragments, first, cursor, ms)) == expected
        assert wire.message(fragments, first, cursor, ms) == expected.SerializeToString()
