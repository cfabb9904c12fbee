"""The client for programs without an event loop: owns the thread, and makes writers and readers for it."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, Unpack

from llmbridge.client import client as asyncio_client
from llmbridge.client.connection import DEFAULT_LINGER
from llmbridge.client.reader import SubscriptionOptions
from llmbridge.client.retry import RetryPolicy
from llmbridge.client.sync.admin import StreamAdmin
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.client.sync.reader import Subscription
from llmbridge.client.sync.writer import Writer
from llmbridge.client.values import Position
from llmbridge.client.writer import WriterOptions
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import CancelResponse
from llmbridge.v1.token_pb2 import Token

_DEFAULT_RETRY = RetryPolicy()
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Takeover:
    """A stream to go on with; as llmbridge.client.Takeover."""

    tokens: tuple[Token, ...]
    text: str
    writer: Writer


class Client:
    """A connection to the bridge, as a context manager; as llmbridge.client.Client. Make one per process, and share it.

    Its thread begins and ends with the block. Leaving the block ends what other threads still wait for in it, with
    ClientClosed. Ctrl-C is raised where the main thread waits, once what it waited for has been cancelled.
    """

    def __init__(
        self, address: str = "127.0.0.1:50051", *, retry: RetryPolicy = _DEFAULT_RETRY, linger: float = DEFAULT_LINGER
    ) -> None:
        self.address = address
        self._client = asyncio_client.Client(address, retry=retry, linger=linger)
        self._open_thread: LoopThread | None = None

    def __enter__(self) -> Self:
        if self._open_thread is not None:
            raise RuntimeError("a client is for one `with` block")
        self._open_thread = LoopThread()
        try:
            self._open_thread.run(self._client.__aenter__())
        except BaseException:
            self._open_thread.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._thread.run(self._client.__aexit__(kind, error, traceback))
        finally:
            self._thread.close()

    @property
    def _thread(self) -> LoopThread:
        if self._open_thread is None:
            raise RuntimeError("a client works only inside its `with` block")
        return self._open_thread

    @property
    def streams(self) -> StreamAdmin:
        """Create, inspect, list, trim and delete streams."""
        return StreamAdmin(self._thread, self._client.streams)

    def write(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        producer_epoch: int = 0,
        **options: Unpack[WriterOptions],
    ) -> Writer:
        """Make a writer for one response, to be used with `with`."""
        writer = self._made(
            lambda: self._client.write(stream, model_id, response_id, producer_epoch=producer_epoch, **options)
        )
        return Writer(self._thread, writer)

    def takeover(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        position: Position = Position.BEGINNING,
        **options: Unpack[WriterOptions],
    ) -> Takeover:
        """Go on with a dead producer's text: read what there is, and make a writer that fences it off."""
        takeover = self._thread.run(self._client.takeover(stream, model_id, response_id, position=position, **options))
        return Takeover(takeover.tokens, takeover.text, Writer(self._thread, takeover.writer))

    def subscribe(
        self,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        **options: Unpack[SubscriptionOptions],
    ) -> Subscription:
        """Read a stream, to be used with `for`."""
        return Subscription(
            self._thread, self._made(lambda: self._client.subscribe(stream, model_id, response_id, **options))
        )

    def cancel(
        self, stream: StreamName | str, model_id: str = "", response_id: str = "", *, reason: str = ""
    ) -> CancelResponse:
        """Stop a generation: when this returns the stream is sealed; the answer says how, and by whom. Idempotent."""
        return self._thread.run(self._client.cancel(stream, model_id, response_id, reason=reason))

    def is_serving(self, service: str = "") -> bool:
        """Ask the bridge for its health, or one service's."""
        return self._thread.run(self._client.is_serving(service))

    def _made(self, make: Callable[[], _Made]) -> _Made:
        """Make what belongs to the event loop in its thread."""

        async def made() -> _Made:
            return make()

        return self._thread.run(made())
