"""What a stream is called. Knows nothing of how names become Redis keys or messages."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class StreamName:
    """One response of one model within one session. Any two different names are two different streams."""

    session_id: str
    model_id: str
    response_id: str = ""
