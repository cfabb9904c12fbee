"""The signals that end a server: while it starts, they break the start off; afterwards they have it drain."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stopped_by_signals() -> Iterator[tuple[asyncio.Event, Callable[[], None]]]:
    """Give an event that SIGTERM and SIGINT set, and what to call when the start is done.

    Before that the first of them cancels the block, too, which may wait for a Redis that is not there; it then ends as
    if all were done.
    """
    stop = asyncio.Event()
    starting = asyncio.current_task()

    def heed() -> None:
        if starting is not None and not stop.is_set():
            starting.cancel()
        stop.set()

    def started() -> None:
        nonlocal starting
        starting = None

    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, heed)
    try:
        yield stop, started
    except asyncio.CancelledError:
        if starting is None or not stop.is_set():
            raise
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
