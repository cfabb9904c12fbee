"""Going on with the text of a producer that has died: where it ended, what it said, and a writer that fences it off."""

from dataclasses import dataclass
from typing import Unpack

import grpc

from llmbridge.client.admin import StreamAdmin
from llmbridge.client.connection import Connection
from llmbridge.client.errors import DeadlineExceeded, StreamCompleted, Unavailable
from llmbridge.client.reader import Subscription
from llmbridge.client.values import Position
from llmbridge.client.writer import Writer, WriterOptions
from llmbridge.model.names import StreamName
from llmbridge.v1.stream_pb2 import STREAM_STATE_SEALED, Sealer, StreamInfo
from llmbridge.v1.token_pb2 import FinishReason, Token


@dataclass(frozen=True, slots=True)
class Takeover:
    """A stream to go on with: what it has, and a writer that goes on behind that.

    The writer is to be used with `async with`. Until its first batch is stored the stream is still the other
    producer's. If that lives after all and writes something in between, the writer raises SequenceGap, and of several
    that take over at once all but one raise GenerationOver; in both cases the stream is left as it is. What the other
    producer wrote is not kept for a log that loses its tail: that is DataLost.
    """

    tokens: tuple[Token, ...]
    """What is there, from the position asked for."""
    writer: Writer

    @property
    def text(self) -> str:
        """The text tokens' content, concatenated."""
        return "".join(token.text for token in self.tokens)


async def take_over(
    connection: Connection, stream: StreamName, position: Position, **options: Unpack[WriterOptions]
) -> Takeover:
    """Read what a stream has, and make a writer for what follows, with the next higher epoch.

    Raises StreamNotFound; StreamCompleted if there is nothing left to write; HistoryLost where the position is the
    beginning and that is gone; Unavailable when the client's retry policy gave up.
    """
    admin = StreamAdmin(connection)
    info = await admin.get(stream)
    if info.state == STREAM_STATE_SEALED:
        raise _completed(info)
    tokens: list[Token] = []
    last = info.last_sequence
    patience = connection.policy.give_up_after
    read = 0
    async with Subscription(connection, stream, position=position, timeout=patience, retry_for=patience) as messages:
        try:
            while read < last:
                message = await anext(messages)
                tokens += message.tokens
                # Where a message holds more than was there at first, the producer was not dead yet.
                read = message.last_sequence
                if message.completion is not None:
                    raise _completed(await admin.get(stream))
        except DeadlineExceeded as error:
            raise Unavailable(f"record {last} of {stream} can't be read: the log may have lost it") from error
    writer = Writer(connection, stream, producer_epoch=info.producer_epoch + 1, first_sequence=read + 1, **options)
    return Takeover(tuple(tokens), writer)


def _completed(info: StreamInfo) -> StreamCompleted:
    metadata: dict[str, str] = {}
    if info.finish_reason in FinishReason.values():
        metadata["finish_reason"] = FinishReason.Name(info.finish_reason)
    if info.sealer in Sealer.values():
        metadata["sealer"] = Sealer.Name(info.sealer)
    message = "the stream has its end: there is nothing to take over"
    return StreamCompleted(message, code=grpc.StatusCode.FAILED_PRECONDITION, reason="COMPLETED", metadata=metadata)
