"""A source of any kind as records: opened, translated as it comes, closed whatever happens.

Owns the source from the call on. Knows nothing of where the records go.
"""

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self, TypeAlias

from llmbridge.client.adapters.anthropic_messages import MessagesTranslator
from llmbridge.client.adapters.fields import field, text_of
from llmbridge.client.adapters.openai_chat import ChatTranslator
from llmbridge.client.adapters.openai_responses import ResponsesTranslator
from llmbridge.client.adapters.plain import PlainTranslator
from llmbridge.client.adapters.translator import Translator, error_completion
from llmbridge.client.tasks import outlast
from llmbridge.v1.token_pb2 import Completion, Generation, Token

__all__ = [
    "Records",
    "Source",
    "anthropic_records",
    "openai_records",
    "openai_responses_records",
    "records_of",
    "text_records",
]

_log = logging.getLogger(__name__)

Stream: TypeAlias = AsyncIterable[object]
Source: TypeAlias = Stream | Awaitable[Stream] | AbstractAsyncContextManager[Stream, bool | None]
"""A stream, what is to be awaited for one, or an async context manager that gives one; as the SDKs return it."""

_SDKS = ("openai", "anthropic")
_ANTHROPIC_EVENTS = (
    *("message_start", "message_delta", "message_stop"),
    *("content_block_start", "content_block_delta", "content_block_stop"),
)
# A stream that is read to its end leaves its connection to the next request. Of the endpoint's last bytes nothing
# is wanted, so this must not cost more than a new connection.
_DRAIN_SECONDS = 0.1
_CLOSE_SECONDS = 5.0


class Records(AsyncIterator[Token | Completion]):
    """A source's tokens as they come and then its completion, as an async iterator.

    A token's `timestamp_ms` is when it arrived here, unless it has one. The first one tells how the response is
    generated, as far as it is known: the model's name as the server gives it, and what the caller asked for.

    What the source raises passes through, without a completion. Closes the source when it has ended or failed; before
    that, leaving the `async with` block, cancelling an iteration, or `aclose()` does it, at which a model stops
    generating. One task may iterate.
    """

    def __init__(
        self,
        source: Source,
        translator: Translator | None,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._source = source
        self._translator = translator
        self._asked = Generation(temperature=temperature, max_tokens=max_tokens)
        self._manager: AbstractAsyncContextManager[Stream, bool | None] | None = None
        self._stream: Stream | None = None
        self._events: AsyncIterator[object] | None = None
        self._ready: deque[Token | Completion] = deque()
        self._first = True
        self._exhausted = False
        self._ended = False
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token | Completion:
        while not self._ready:
            if self._ended:
                await self.aclose()
                raise StopAsyncIteration
            try:
                await self._read_event()
            except BaseException:
                await self.aclose()
                raise
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Close the source. Bounded in time and never raises what the source does then: it is logged."""
        self._ended = True
        if self._closed:
            return
        try:
            # In this task, since generators may have opened what only the same task may close.
            await self._close()
        except asyncio.CancelledError:
            await outlast(self._close())
            raise

    async def _read_event(self) -> None:
        if self._events is None:
            self._events = aiter(await self._open())
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self._exhausted = True
            self._end()
            return
        if self._translator is None:
            self._translator = _translator_for(event)
        if self._translator is not None:
            for token in self._translator.tokens(event):
                self._add(token)
            if self._translator.finished:
                self._end()

    async def _open(self) -> Stream:
        opened = self._source
        if not isinstance(opened, AsyncIterable) and isinstance(opened, Awaitable):
            opened = await opened
        if not isinstance(opened, AsyncIterable) and isinstance(opened, AbstractAsyncContextManager):
            manager = opened
            opened = await manager.__aenter__()
            self._manager = manager
        if not isinstance(opened, AsyncIterable):
            raise TypeError(
                f"{type(opened).__name__} can't be read asynchronously: give an async iterator (an SDK's from its async"
                " client, with stream=True)"
            )
        self._stream = opened
        return opened

    def _add(self, token: Token) -> None:
        translator = self._translator
        if self._first and translator is not None:
            self._first = False
            self._asked.model = translator.model
            if not token.HasField("generation") and self._asked.ByteSize():
                token.generation.CopyFrom(self._asked)
        token.timestamp_ms = token.timestamp_ms or time.time_ns() // 1_000_000
        token.role = token.role or (translator.role if translator is not None else token.role)
        self._ready.append(token)

    def _end(self) -> None:
        self._ended = True
        if self._translator is not None:
            for token in self._translator.rest():
                self._add(token)
            self._ready.append(self._translator.completion())
        else:
            self._ready.append(nothing_said(self._stream))

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                if not self._exhausted and self._translator is not None and self._translator.finished:
                    await self._drain()
                if self._manager is not None:
                    await self._manager.__aexit__(None, None, None)
                await _close(self._events)
                await _close(self._stream if self._stream is not None else self._source)
        except Exception as error:
            # The response has what it is to have, and a second error would hide the first.
            _log.warning("could not close %s: %s", type(self._source).__name__, type(error).__name__, exc_info=error)
        self._closed = True

    async def _drain(self) -> None:
        if self._events is None:
            return
        self._exhausted = True
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in self._events:
                    pass
        except Exception as error:
            _log.debug("what follows the end of the response could not be read", exc_info=error)


def openai_records(source: Source, *, temperature: float | None = None, max_tokens: int | None = None) -> Records:
    """Read the chunks of an OpenAI-compatible chat completion; see ChatTranslator.

    `temperature` and `max_tokens` are what was asked for, to be told with the first token.
    """
    return Records(source, ChatTranslator(), temperature=temperature, max_tokens=max_tokens)


def openai_responses_records(
    source: Source, *, temperature: float | None = None, max_tokens: int | None = None
) -> Records:
    """Read the events of OpenAI's Responses API; see ResponsesTranslator, and openai_records for the rest."""
    return Records(source, ResponsesTranslator(), temperature=temperature, max_tokens=max_tokens)


def anthropic_records(source: Source, *, temperature: float | None = None, max_tokens: int | None = None) -> Records:
    """Read the events of Anthropic's Messages API; see MessagesTranslator, and openai_records for the rest."""
    return Records(source, MessagesTranslator(), temperature=temperature, max_tokens=max_tokens)


def text_records(source: Source, *, temperature: float | None = None, max_tokens: int | None = None) -> Records:
    """Read strings, or records made elsewhere; see PlainTranslator, and openai_records for the rest."""
    return Records(source, PlainTranslator(), temperature=temperature, max_tokens=max_tokens)


def records_of(source: Source) -> Records:
    """Read any of these: which one it is, its first events tell.

    An iterator that ends without any event is a response without text, but an SDK's stream that does so is an error.
    """
    return source if isinstance(source, Records) else Records(source, None)


def nothing_said(stream: object) -> Completion:
    """The end of a stream that ended without any event; see `records_of`."""
    if _is_of_sdk(stream):
        return error_completion("the model's stream ended without saying anything", None)
    return PlainTranslator().completion()


def _translator_for(event: object) -> Translator | None:
    """Tell from an event what kind of stream it is from; None if it tells nothing.

    Raises TypeError if no stream that is known here has such events.
    """
    if isinstance(event, str | Token | Completion):
        return PlainTranslator()
    kind = text_of(event, "type")
    if kind.startswith("response."):
        return ResponsesTranslator()
    if kind in _ANTHROPIC_EVENTS:
        return MessagesTranslator()
    if kind == "error":
        # Anthropic's carries the error in an object, OpenAI's is one.
        return ResponsesTranslator() if field(event, "error") is None else MessagesTranslator()
    chunk = field(event, "chunk") or event
    if field(chunk, "choices") is not None or text_of(chunk, "object") == "chat.completion.chunk":
        return ChatTranslator()
    if kind or isinstance(event, Mapping) or _is_of_sdk(event):
        return None
    raise TypeError(f"a source of {type(event).__name__} can't be piped: it must be of strings or an SDK's events")


def _is_of_sdk(value: object) -> bool:
    return type(value).__module__.partition(".")[0] in _SDKS


async def _close(opened: object) -> None:
    """Close a stream or generator, in whatever way it has."""
    for name in ("aclose", "close"):
        close: Callable[[], object] | None = getattr(opened, name, None)
        if close is not None:
            closing = close()
            if inspect.isawaitable(closing):
                await closing
            return
