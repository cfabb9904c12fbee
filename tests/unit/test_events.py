"""The JSON of events that readers of a stream share: written once, and not kept without bound."""

from llmbridge.gateway.following import Encoded
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import Token

STREAM = StreamRef(session_id="s", model_id="m")


def message(number: int, text: str = "x") -> SubscribeResponse:
    return SubscribeResponse(
        tokens=[Token(text=text)], first_sequence=number, cursor=f"1-{number}-00000000", appended_ms=1
    )


def test_a_message_is_written_once_for_all_readers() -> None:
    encoded = Encoded()
    assert encoded.tokens(message(1), STREAM) is encoded.tokens(message(1), STREAM)
    assert encoded.tokens(message(1), STREAM) is not encoded.tokens(message(1), StreamRef(session_id="t", model_id="m"))


def test_a_slice_of_an_entry_is_another_message() -> None:
    encoded = Encoded()
    whole = SubscribeResponse(tokens=[Token(text="a"), Token(text="b")], first_sequence=1, cursor="1-2-00000000")
    rest = SubscribeResponse(tokens=[Token(text="b")], first_sequence=2, cursor="1-2-00000000")
    assert encoded.tokens(whole, STREAM) != encoded.tokens(rest, STREAM)


def test_what_is_kept_is_bounded() -> None:
    encoded = Encoded()
    first = encoded.tokens(message(1), STREAM)
    for number in range(2, 1_000):
        encoded.tokens(message(number), STREAM)
    assert encoded.kept == 256
    assert encoded.tokens(message(1), STREAM) is not first
    large = message(2_000, "x" * 20_000)
    assert encoded.tokens(large, STREAM) is not encoded.tokens(large, STREAM)
