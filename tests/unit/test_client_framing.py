"""Messages that are encoded already, put into another one."""

import pytest

from llmbridge.client.framing import embedded
from llmbridge.v1.bridge_service_pb2 import ProduceManyRequest, WriterAppend, WriterStart
from llmbridge.v1.token_pb2 import Token


@pytest.mark.parametrize("size", [0, 1, 120, 121, 122, 123, 127, 128, 16_370, 16_377, 16_384, 300_000])
def test_it_is_what_protobuf_makes(size: int) -> None:
    append = WriterAppend(tokens=[Token(text="x" * size)])
    assert embedded(2, append.SerializeToString()) == ProduceManyRequest(appends=[append]).SerializeToString()


def test_parts_are_put_together_by_joining_them() -> None:
    start, first, second = WriterStart(writer=3), WriterAppend(first_sequence=1), WriterAppend(append_id=300)
    parts = embedded(2, first.SerializeToString()), embedded(1, start.SerializeToString())
    whole = b"".join((*parts, embedded(2, second.SerializeToString())))
    assert ProduceManyRequest.FromString(whole) == ProduceManyRequest(starts=[start], appends=[first, second])
