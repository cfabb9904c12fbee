"""The asyncio client of the bridge: writes a response, reads a response, and never loses its place.

    async with Client("127.0.0.1:50051") as client:
        async with client.write("session", "model", "response") as writer:
            await writer.text("Hello")
        async for piece in client.subscribe("session", "model", "response").texts():
            print(piece, end="")

`llmbridge.client.sync` is the same for programs without an event loop. Needs neither the server's code nor Redis.
`errors` draws the tree of what can be raised.
"""

from llmbridge.client.adapters import SourceError, pipe
from llmbridge.client.admin import StreamAdmin
from llmbridge.client.client import Client
from llmbridge.client.connection_admin import ConnectionAdmin
from llmbridge.client.errors import (
    BridgeFailure,
    ClientClosed,
    ClientError,
    ConnectionNotFound,
    DataLost,
    DeadlineExceeded,
    Disconnected,
    GenerationOver,
    GroupNotFound,
    GroupSettingsDiffer,
    HistoryLost,
    InvalidRequest,
    LimitExceeded,
    ProducerFenced,
    ProtocolViolation,
    ResponseFailed,
    SequenceConflict,
    SequenceGap,
    StreamCompleted,
    StreamExists,
    StreamNotFound,
    Unavailable,
)
from llmbridge.client.groups import GroupAdmin, GroupName
from llmbridge.client.pieces import Pieces
from llmbridge.client.reader import Subscription, SubscriptionOptions
from llmbridge.client.retry import RetryPolicy
from llmbridge.client.takeover import Takeover
from llmbridge.client.values import FinishReason, Message, Position, Sealer
from llmbridge.client.watch import StreamEvent, Watch
from llmbridge.client.writer import Writer, WriterOptions
from llmbridge.model.names import StreamName
from llmbridge.v1.token_pb2 import Completion, Generation, Role, Token, ToolCall, Usage

__all__ = [
    "BridgeFailure",
    "Client",
    "ClientClosed",
    "ClientError",
    "Completion",
    "ConnectionAdmin",
    "ConnectionNotFound",
    "DataLost",
    "DeadlineExceeded",
    "Disconnected",
    "FinishReason",
    "Generation",
    "GenerationOver",
    "GroupAdmin",
    "GroupName",
    "GroupNotFound",
    "GroupSettingsDiffer",
    "HistoryLost",
    "InvalidRequest",
    "LimitExceeded",
    "Message",
    "Pieces",
    "Position",
    "ProducerFenced",
    "ProtocolViolation",
    "ResponseFailed",
    "RetryPolicy",
    "Role",
    "Sealer",
    "SequenceConflict",
    "SequenceGap",
    "SourceError",
    "StreamAdmin",
    "StreamCompleted",
    "StreamEvent",
    "StreamExists",
    "StreamName",
    "StreamNotFound",
    "Subscription",
    "SubscriptionOptions",
    "Takeover",
    "Token",
    "ToolCall",
    "Unavailable",
    "Usage",
    "Watch",
    "Writer",
    "WriterOptions",
    "pipe",
]
