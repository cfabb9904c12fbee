"""Between the core's values and the generated messages."""

from llmbridge.log.streams import StreamState
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason, Sealer
from llmbridge.v1 import stream_pb2, token_pb2


def finish_reason_to_proto(reason: FinishReason) -> token_pb2.FinishReason.ValueType:
    """Give the enum value of a stored finish reason."""
    return token_pb2.FinishReason.Value(f"FINISH_REASON_{reason.name}")


def sealer_to_proto(sealer: Sealer) -> stream_pb2.Sealer.ValueType:
    """Give the enum value of a stored sealer."""
    return stream_pb2.Sealer.Value(f"SEALER_{sealer.name}")


def name_to_proto(name: StreamName) -> stream_pb2.StreamRef:
    """Encode a stream's name."""
    return stream_pb2.StreamRef(session_id=name.session_id, model_id=name.model_id, response_id=name.response_id)


def state_to_proto(state: StreamState) -> stream_pb2.StreamInfo:
    """Encode a stream's state."""
    info = stream_pb2.StreamInfo(
        stream=name_to_proto(state.name),
        state=stream_pb2.STREAM_STATE_SEALED if state.sealer else stream_pb2.STREAM_STATE_OPEN,
        first_sequence=state.first_sequence,
        last_sequence=state.last_sequence,
        producer_epoch=state.producer_epoch,
        entries=state.entries,
        bytes=state.bytes,
        time_to_live_ms=state.time_to_live_ms,
        created_ms=state.incarnation // 1000,
        appended_ms=state.appended_ms,
        cursor=state.cursor,
    )
    if state.sealer is not None and state.finish_reason is not None:
        info.sealer = sealer_to_proto(state.sealer)
        info.finish_reason = finish_reason_to_proto(state.finish_reason)
    return info
