"""The client for programs without an event loop: owns the thread, and makes what the program uses of it."""

from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from llmbridge.client import client as asyncio_client
from llmbridge.client.connection import DEFAULT_LINGER
from llmbridge.client.reader import SubscriptionOptions
from llmbridge.client.retry import RetryPolicy
from llmbridge.client.sync import piping
from llmbridge.client.sync.admin import ConnectionAdmin, GroupAdmin, StreamAdmin
from llmbridge.client.sync.face import blocking
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.client.sync.reader import Subscription
from llmbridge.client.sync.watch import Watch
from llmbridge.client.sync.writer import Writer
from llmbridge.client.values import Position
from llmbridge.client.writer import WriterOptions
from llmbridge.model.names import StreamName
from llmbridge.v1.token_pb2 import Completion, Token

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
        self._original = asyncio_client.Client(address, retry=retry, linger=linger)
        self._open_thread: LoopThread | None = None

    def __enter__(self) -> Self:
        if self._open_thread is not None:
            raise RuntimeError("a client is for one `with` block")
        self._open_thread = LoopThread()
        try:
            self._open_thread.run(self._original.__aenter__())
        except BaseException:
            self._open_thread.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._thread.run(self._original.__aexit__(kind, error, traceback))
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
        return StreamAdmin(self._thread, self._original.streams)

    @property
    def groups(self) -> GroupAdmin:
        """Settle deliveries to groups, look at groups, see to dead letters."""
        return GroupAdmin(self._thread, self._original.groups)

    @property
    def connections(self) -> ConnectionAdmin:
        """List, count and end the connections of the bridge process."""
        return ConnectionAdmin(self._thread, self._original.connections)

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
            lambda: self._original.write(stream, model_id, response_id, producer_epoch=producer_epoch, **options)
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
        takeover = self._thread.run(
            self._original.takeover(stream, model_id, response_id, position=position, **options)
        )
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
            self._thread, self._made(lambda: self._original.subscribe(stream, model_id, response_id, **options))
        )

    def pipe(
        self,
        source: piping.Source,
        stream: StreamName | str,
        model_id: str = "",
        response_id: str = "",
        *,
        producer_epoch: int = 0,
        **options: Unpack[WriterOptions],
    ) -> Completion:
        """Write the whole of an SDK's stream, or of an iterable of strings, as one response.

        Returns the completion when it is stored. This thread reads the source, so that a cancel or a takeover of the
        stream is noticed, and the source closed, when it says the next thing. What it fails with ends the stream, and
        is raised.
        """

        def write(said: AsyncIterator[object]) -> Coroutine[Any, Any, Completion]:
            return self._original.pipe(said, stream, model_id, response_id, producer_epoch=producer_epoch, **options)

        return piping.pipe(self._thread, write, source)

    def watch(
        self,
        group: str = "",
        *,
        consumer: str = "",
        max_outstanding_events: int = 0,
        ack_deadline_ms: int = 0,
        max_deliveries: int = 0,
        retry_for: float | None = None,
        silence_timeout: float = 45.0,
    ) -> Watch:
        """Watch streams begin and end as a member of a group, to be used with `for`."""
        watch = self._made(
            lambda: self._original.watch(
                group,
                consumer=consumer,
                max_outstanding_events=max_outstanding_events,
                ack_deadline_ms=ack_deadline_ms,
                max_deliveries=max_deliveries,
                retry_for=retry_for,
                silence_timeout=silence_timeout,
            )
        )
        return Watch(self._thread, watch)

    cancel = blocking(asyncio_client.Client.cancel)
    is_serving = blocking(asyncio_client.Client.is_serving)

    def _made(self, make: Callable[[], _Made]) -> _Made:
        """Make what belongs to the event loop in its thread."""

        async def made() -> _Made:
            return make()

        return self._thread.run(made())
