"""The client for programs without an event loop: the same code, carried out by a thread that the client owns.

    with Client("127.0.0.1:50051") as client:
        with client.write("session", "model", "response") as writer:
            writer.text("Hello")
        for piece in client.subscribe("session", "model", "response").texts():
            print(piece, end="")

Everything may be used from several threads, though each subscription and each watch by one at a time. What can go
wrong, and what the options mean, is told in `llmbridge.client`, which has the values and errors, too.
"""

from llmbridge.client.sync.admin import ConnectionAdmin, GroupAdmin, StreamAdmin
from llmbridge.client.sync.client import Client, Takeover
from llmbridge.client.sync.reader import Pieces, Subscription
from llmbridge.client.sync.watch import StreamEvent, Watch
from llmbridge.client.sync.writer import Writer

__all__ = [
    "Client",
    "ConnectionAdmin",
    "GroupAdmin",
    "Pieces",
    "StreamAdmin",
    "StreamEvent",
    "Subscription",
    "Takeover",
    "Watch",
    "Writer",
]
