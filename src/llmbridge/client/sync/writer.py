"""The writer for programs without an event loop."""

from types import TracebackType
from typing import Self

from llmbridge.client import writer as asyncio_writer
from llmbridge.client.sync.face import Face, blocking
from llmbridge.model.names import StreamName


class Writer(Face[asyncio_writer.Writer]):
    """Appends one response, as a context manager; all of it as llmbridge.client.Writer does.

    Ctrl-C within the block gives the stream its end, bounded by `close_timeout`, and is raised afterwards.
    """

    @property
    def stream(self) -> StreamName:
        """The stream's name."""
        return self._original.stream

    @property
    def cursor(self) -> str:
        """The cursor of the last record that the bridge said is stored; empty before the first."""
        return self._original.cursor

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record that the bridge said is stored; 0 before the first."""
        return self._original.last_sequence

    @property
    def completed(self) -> bool:
        """Whether an end of this writer's is known to be stored."""
        return self._original.completed

    @property
    def stopped(self) -> bool:
        """Whether nothing more can be written: stop generating."""
        return self._original.stopped.is_set()

    text = blocking(asyncio_writer.Writer.text)
    reasoning = blocking(asyncio_writer.Writer.reasoning)
    write = blocking(asyncio_writer.Writer.write)
    complete = blocking(asyncio_writer.Writer.complete)
    flush = blocking(asyncio_writer.Writer.flush)

    def __enter__(self) -> Self:
        self._thread.run(self._original.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.run(self._original.__aexit__(kind, error, traceback))
