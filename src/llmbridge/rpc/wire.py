"""The encoding of what the bridge itself says to readers (see model.wire), by the generated code."""

from collections.abc import Sequence

from llmbridge.model.records import FinishReason
from llmbridge.rpc.convert import finish_reason_to_proto
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.token_pb2 import Completion


class ProtoWire:
    """Implements model.wire.Wire."""

    def message(
        self,
        fragments: Sequence[bytes],
        first_sequence: int,
        cursor: str,
        appended_ms: int,
        ack_ids: Sequence[str] = (),
        delivery_attempt: int = 0,
    ) -> bytes:
        """Encode a message: the fragments, then the fields that are said once."""
        rest = SubscribeResponse(first_sequence=first_sequence, cursor=cursor, appended_ms=appended_ms)
        if delivery_attempt:
            rest.delivery_attempt = delivery_attempt
            rest.ack_ids.extend(ack_ids)
        return b"".join((*fragments, rest.SerializeToString()))

    def heartbeat(self, cursor: str) -> bytes:
        """Encode a message that has only a cursor."""
        return SubscribeResponse(cursor=cursor).SerializeToString()

    def completion(self, finish_reason: FinishReason, error_message: str) -> bytes:
        """Encode the fragment of a seal."""
        completion = Completion(finish_reason=finish_reason_to_proto(finish_reason), error_message=error_message)
        return SubscribeResponse(completion=completion).SerializeToString()

    def skip(self, fragment: bytes, records: int) -> bytes:
        """Drop the first records: tokens, then the completion."""
        message = SubscribeResponse.FromString(fragment)
        if records > len(message.tokens):
            message.ClearField("completion")
        del message.tokens[:records]
        return message.SerializeToString(deterministic=True)

    def take(self, fragment: bytes, records: int) -> bytes:
        """Keep the first records: tokens, then the completion."""
        message = SubscribeResponse.FromString(fragment)
        if records <= len(message.tokens):
            message.ClearField("completion")
        del message.tokens[records:]
        return message.SerializeToString(deterministic=True)
