"""Reads text as it arrives: whatever is there at once, not lines. Knows nothing of what becomes of it."""

import asyncio
import codecs
import os
from collections.abc import AsyncIterator

from llmbridge.cli.errors import InputError

__all__ = ["arriving_text"]

# One token's worth. A byte that is not UTF-8 becomes a character of three, and even then a bridge takes the token: by
# default one may have 64 KiB.
_PIECE_BYTES = 16 * 1024


async def arriving_text(descriptor: int) -> AsyncIterator[str]:
    """Yields UTF-8 text piece by piece, each as soon as it is there, until the end of file.

    A character whose bytes arrive apart is yielded whole; bytes that are not UTF-8 become U+FFFD. Nothing else may read
    from `descriptor` meanwhile. Raises InputError when it can't be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        try:
            data = await _available(descriptor)
        except OSError as error:
            raise InputError(f"can't read standard input: {error.strerror}") from error
        if text := decoder.decode(data, final=not data):
            yield text
        if not data:
            return


async def _available(descriptor: int) -> bytes:
    while True:
        await _readable(descriptor)
        try:
            return os.read(descriptor, _PIECE_BYTES)
        except BlockingIOError:
            # Another process that shares the descriptor was faster.
            continue


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    try:
        # The descriptor stays in blocking mode: the mode is shared with whoever else has it, a shell for one.
        loop.add_reader(descriptor, _set, ready)
    except PermissionError:
        # epoll takes no regular files; but they never keep a reader waiting.
        return
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
