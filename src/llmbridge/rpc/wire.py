"""The encoding of what the bridge itself says to readers (see model.wire), by the generated code."""

from collections.abc import Sequence

from llmbridge.model.records import FinishReason
from llmbridge.rpc.convert import finish_reason_to_proto
from llmbridge.rpc.protobuf import LENGTH, SHORT, VARINT, VARINTS, encoded_varint, tag
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.token_pb2 import Completion

_FIRST_SEQUENCE = tag(SubscribeResponse.FIRST_SEQUENCE_FIELD_NUMBER, VARINT)
_CURSOR = tag(SubscribeResponse.CURSOR_FIELD_NUMBER, LENGTH)
_APPENDED_MS = tag(SubscribeResponse.APPENDED_MS_FIELD_NUMBER, VARINT)


class ProtoWire:
    """Implements model.wire.Wire.

    What every token needs is put together by hand, in a fifth of the time that the generated code takes.
    """

    def __init__(self) -> None:
        self._last_ms = 0
        self._last_ms_encoded = b""

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
        if delivery_attempt or not (cursor and 0 < first_sequence < SHORT and appended_ms > 0):
            rest = SubscribeResponse(first_sequence=first_sequence, cursor=cursor, appended_ms=appended_ms)
            if delivery_attempt:
                rest.delivery_attempt = delivery_attempt
                rest.ack_ids.extend(ack_ids)
            return b"".join((*fragments, rest.SerializeToString()))
        if appended_ms != self._last_ms:
            # The same for all that was appended together.
            self._last_ms, self._last_ms_encoded = appended_ms, encoded_varint(appended_ms)
        encoded = cursor.encode()
        return b"".join(
            (
                *fragments,
                _FIRST_SEQUENCE,
                VARINTS[first_sequence],
                _CURSOR,
                VARINTS[len(encoded)],
                encoded,
                _APPENDED_MS,
                self._last_ms_encoded,
            )
        )

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
