"""Pipes what the calling thread reads into a stream: the asyncio client's `pipe`, with a source that is handed over.

So the source may be of any thread and any library, and what it says is translated as everywhere.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from typing import Any, NoReturn, TypeAlias

from llmbridge.client.adapters.records import nothing_said
from llmbridge.client.errors import ClientClosed
from llmbridge.client.sync.loop_thread import LoopThread
from llmbridge.v1.token_pb2 import Completion

Stream: TypeAlias = Iterable[object]
Source: TypeAlias = Stream | AbstractContextManager[Stream, bool | None]
"""A stream, or a context manager that gives one; as the SDKs' clients without asyncio return it."""

_Write: TypeAlias = Callable[[AsyncIterator[object]], Coroutine[Any, Any, Completion]]
_Said: TypeAlias = Callable[[], object]
"""Returns or raises what a source did."""

_log = logging.getLogger(__name__)


def pipe(thread: LoopThread, write: _Write, source: Source) -> Completion:
    """Have `write` write what the source says, which is read here; return or raise what it does. Closes the source."""
    piping = _Piping(write)
    try:
        with closing(_read(source)) as sayings:
            for said in sayings:
                if not thread.run(piping.say(said)):
                    break
        return thread.run(piping.end())
    except BaseException:
        with suppress(ClientClosed):
            thread.run(piping.give_up())
        raise


def _read(source: Source) -> Generator[_Said, None, None]:
    """Read a source to its end, which is told last, and close it."""
    manager: AbstractContextManager[Stream, bool | None] | None = None
    stream: object = source
    silent = True
    try:
        if not isinstance(source, Iterable) and isinstance(source, AbstractContextManager):
            stream = source.__enter__()
            manager = source
        for event in _iterable(stream):
            silent = False
            yield partial(_return, event)
    except Exception as error:
        yield partial(_raise, error)
    else:
        if silent:
            yield partial(_return, nothing_said(stream))
        yield partial(_raise, StopAsyncIteration())
    finally:
        _close(manager, stream)


def _iterable(stream: object) -> Stream:
    if isinstance(stream, Iterable):
        return stream
    raise TypeError(
        f"{type(stream).__name__} can't be read without an event loop: give an iterable (an SDK's from its client"
        " without asyncio, with stream=True)"
    )


def _return(event: object) -> object:
    return event


def _raise(error: Exception) -> NoReturn:
    raise error


def _close(manager: AbstractContextManager[Stream, bool | None] | None, stream: object) -> None:
    close: Callable[[], object] | None = getattr(stream, "close", None)
    try:
        if manager is not None:
            manager.__exit__(None, None, None)
        if close is not None:
            close()
    except Exception as error:
        # The response has what it is to have, and a second error would hide the first.
        _log.warning("could not close %s: %s", type(stream).__name__, type(error).__name__, exc_info=error)


class _Piping(AsyncIterator[object]):
    """A pipe under way, in the loop's thread, and its source: what it is told, one thing after the other."""

    def __init__(self, write: _Write) -> None:
        self._write = write
        self._writing: asyncio.Task[Completion] | None = None
        self._said: _Said | None = None
        self._something = asyncio.Event()
        # Set while something is wanted, and when nothing ever will be again.
        self._wanted = asyncio.Event()

    async def __anext__(self) -> object:
        self._wanted.set()
        await self._something.wait()
        self._something.clear()
        said, self._said = self._said, None
        assert said is not None, "there is something when that is told"
        return said()

    async def say(self, said: _Said) -> bool:
        """Hand something over, and wait until more is wanted; False if that will never be."""
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(self), name="pipe")
            self._writing.add_done_callback(lambda _: self._wanted.set())
        await self._wanted.wait()
        if not self._writing.done():
            self._said = said
            self._wanted.clear()
            self._something.set()
            await self._wanted.wait()
        return not self._writing.done()

    async def end(self) -> Completion:
        """Wait for the end, once it was said; return or raise what came of it."""
        assert self._writing is not None, "the end was said"
        return await self._writing

    async def give_up(self) -> None:
        """Break it off, and wait until the stream has its end."""
        if self._writing is None:
            return
        self._writing.cancel()
        await asyncio.wait([self._writing])
        if not self._writing.cancelled():
            self._writing.exception()
