"""The JSON of events that readers of a stream share: written once, and not kept without bound."""

from llmbridge.gateway.following import Encoded
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.token_pb2 import Token

STREAM = StreamName("s", "m")


def message(number: int, text: str = "x") -> SubscribeResponse:
    return SubscribeResponse(
        tokens=[Token(text=text)], first_sequence=number, cursor=f"1-{number}-00000000", appended_ms=1
    )


def test_a_message_is_written_once_for_all_readers() -> None:
    encoded = Encoded()
    assert encoded.events(STREAM, message(1)) is encoded.events(STREAM, message(1))
    assert encoded.events(STREAM, message(1)) is not encoded.events(StreamName("t", "m"), message(1))


def test_a_slice_of_an_entry_is_another_message() -> None:
    encoded = Encoded()
    whole = SubscribeResponse(tokens=[Token(text="a"), Token(text="b")], first_sequence=1, cursor="1-2-00000000")
    rest = SubscribeResponse(tokens=[Token(text="b")], first_sequence=2, cursor="1-2-00000000")
    assert encoded.events(STREAM, whole) != encoded.events(STREAM, rest)


def test_what_is_kept_is_bounded() -> None:
    encoded = Encoded()
    first = encoded.events(STREAM, message(1))
    for number in range(2, 1_000):
        encoded.events(STREAM, message(number))
    assert encoded.kept == 256
    assert encoded.events(STREAM, message(1)) is not first
    large = message(2_000, "x" * 20_000)
    assert encoded.events(STREAM, large) is not encoded.events(STREAM, large)
