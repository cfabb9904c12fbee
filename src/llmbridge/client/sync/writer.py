"""The writer for programs without an event loop."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from llmbridge.client import writer as asyncio_writer
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.client.values import FinishReason
from llmbridge.model.names import StreamName
from llmbridge.v1.token_pb2 import Completion, Token, Usage


class Writer:
    """Appends one response, as a context manager; all of it as llmbridge.client.Writer does.

    Ctrl-C within the block gives the stream its end, bounded by `close_timeout`, and is raised afterwards.
    """

    def __init__(self, thread: LoopThread, writer: asyncio_writer.Writer) -> None:
        self._thread = thread
        self._writer = writer

    @property
    def stream(self) -> StreamName:
        """The stream's name."""
        return self._writer.stream

    @property
    def cursor(self) -> str:
        """The cursor of the last record that the bridge said is stored; empty before the first."""
        return self._writer.cursor

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record that the bridge said is stored; 0 before the first."""
        return self._writer.last_sequence

    @property
    def completed(self) -> bool:
        """Whether an end of this writer's is known to be stored."""
        return self._writer.completed

    @property
    def stopped(self) -> bool:
        """Whether nothing more can be written: stop generating."""
        return self._writer.stopped.is_set()

    def text(self, text: str) -> None:
        """Append a piece of the answer."""
        self._thread.run(self._writer.text(text))

    def reasoning(self, text: str) -> None:
        """Append a piece of the model's reasoning."""
        self._thread.run(self._writer.reasoning(text))

    def write(self, *records: Token | str | Completion) -> None:
        """Append tokens; the last may be the completion. Waits only while the buffer is full."""
        self._thread.run(self._writer.write(*records))

    def complete(
        self,
        finish_reason: FinishReason = FinishReason.STOP,
        *,
        error_message: str = "",
        usage: Usage | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """End the stream."""
        self._thread.run(
            self._writer.complete(finish_reason, error_message=error_message, usage=usage, attributes=attributes)
        )

    def flush(self) -> None:
        """Wait until all that was written before this call is stored."""
        self._thread.run(self._writer.flush())

    def __enter__(self) -> Self:
        self._thread.run(self._writer.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.run(self._writer.__aexit__(kind, error, traceback))
