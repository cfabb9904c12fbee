"""Writes what a source says, and lets go of the source as soon as nobody wants it. Knows no kind of source."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol, runtime_checkable

from llmbridge.client.adapters.failures import explain
from llmbridge.client.adapters.records import Records, Source, records_of
from llmbridge.client.errors import ClientError
from llmbridge.client.tasks import stop
from llmbridge.client.values import FinishReason
from llmbridge.v1.token_pb2 import Completion, Token, Usage

__all__ = ["RecordWriter", "pipe"]


class RecordWriter(Protocol):
    """Where a response goes: a client's Writer, or what stands in for one."""

    async def write(self, token: Token, /) -> None:
        """Take a token; see Writer.write."""

    async def complete(
        self,
        finish_reason: FinishReason,
        *,
        error_message: str,
        usage: Usage | None,
        attributes: Mapping[str, str] | None,
    ) -> None:
        """Take the end; see Writer.complete."""


@runtime_checkable
class _StoppableWriter(Protocol):
    """A writer that tells when it takes no more, as a client's does."""

    @property
    def stopped(self) -> asyncio.Event:
        """See Writer.stopped."""

    async def flush(self) -> None:
        """Raises what has failed; see Writer.flush."""


async def pipe(source: Source, writer: RecordWriter) -> Completion:
    """Write a source's tokens as they come, and its completion, which is returned.

    To be used in the writer's block; leaving that waits until everything is stored. The source may be the stream of an
    SDK's async client (OpenAI's chat completions and responses, Anthropic's messages; also not awaited yet, and their
    stream helpers), an async iterator of strings or tokens, or Records.

    The source is closed whatever happens, at which a model stops generating: when the writer takes no more, which is
    noticed also while the source is silent and raises what the writer failed with (GenerationOver: the stream was
    cancelled or taken over), and when this task is cancelled. When the source fails, the stream is completed with an
    error for people, without what it might hold of secrets (see SourceError), and the source's error is raised. A
    completion that says FINISH_REASON_ERROR, because the model's stream does, is returned like any other.
    """
    async with records_of(source) as records:
        async with _while_wanted(writer):
            outcome = await _copy(records, writer)
        if isinstance(outcome, Completion):
            await _complete(writer, outcome)
            return outcome
        end = Completion(finish_reason=FinishReason.ERROR.on_wire, error_message=explain(outcome))
        try:
            await _complete(writer, end)
        except ClientError as error:
            outcome.add_note(f"llmbridge: the stream's end could not be written ({type(error).__name__}: {error})")
        raise outcome


async def _copy(records: Records, writer: RecordWriter) -> Completion | Exception:
    """Write the tokens; returns how the source ended or with what it failed. What the writer raises is raised."""
    while True:
        try:
            record = await anext(records)
        except StopAsyncIteration:
            return RuntimeError("these records have been read before")
        except Exception as error:
            return error
        if isinstance(record, Completion):
            return record
        await writer.write(record)


async def _complete(writer: RecordWriter, completion: Completion) -> None:
    await writer.complete(
        FinishReason.of(completion),
        error_message=completion.error_message,
        usage=completion.usage if completion.HasField("usage") else None,
        attributes=completion.attributes,
    )


@asynccontextmanager
async def _while_wanted(writer: RecordWriter) -> AsyncIterator[None]:
    """Break the block off when the writer stops, and raise what it failed with."""
    if not isinstance(writer, _StoppableWriter):
        yield
        return
    try:
        async with asyncio.timeout(None) as scope:
            watcher = asyncio.create_task(_expire(scope, writer.stopped), name="pipe until stopped")
            try:
                yield
            finally:
                await stop(watcher)
    except TimeoutError:
        if not scope.expired():
            raise
        await writer.flush()
        # What it failed with is forgotten only when its block is left.
        raise RuntimeError("the writer's block was left while a source was piped into it") from None


async def _expire(scope: asyncio.Timeout, stopped: asyncio.Event) -> None:
    await stopped.wait()
    scope.reschedule(asyncio.get_running_loop().time())
