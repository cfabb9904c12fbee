"""An event loop in a thread of its own, which carries out other threads' coroutines. Knows nothing of the bridge."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from llmbridge.client.errors import ClientClosed

_Result = TypeVar("_Result")


class LoopThread:
    """Starts at once, ends with `close`. Any number of threads may call `run` at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: set[Future[Any]] = set()
        self._closed = False
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        # A daemon: a program that forgets to close must be able to end all the same.
        self._thread = threading.Thread(target=self._serve, args=(started,), name="llmbridge-client", daemon=True)
        self._thread.start()
        self._loop, self._stop = started.result()

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Have the coroutine carried out, and return or raise what it does. Raises ClientClosed after `close`.

        When the waiting is interrupted (Ctrl-C) the coroutine is cancelled, and this raises once that has ended.
        """
        outcome: Future[_Result] = Future()
        task: asyncio.Task[_Result] | None = None

        def start() -> None:
            nonlocal task
            task = self._loop.create_task(coroutine)
            task.add_done_callback(lambda done: _hand_over(done, outcome))

        def cancel() -> None:
            if task is not None:
                task.cancel()
            elif not outcome.done():
                # Interrupted before it could begin.
                coroutine.close()
                outcome.set_exception(ClientClosed())

        def ask_to_cancel() -> None:
            # A loop that is closed has ended everything.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(cancel)

        try:
            with self._lock:
                if self._closed:
                    coroutine.close()
                    outcome.set_exception(ClientClosed())
                else:
                    self._outcomes.add(outcome)
                    self._loop.call_soon_threadsafe(start)
            return outcome.result()
        except BaseException:
            # Done, it is the coroutine's own; else this was interrupted, and may be again and again.
            while not outcome.done():
                with contextlib.suppress(KeyboardInterrupt):
                    ask_to_cancel()
                    wait([outcome])
            raise
        finally:
            with self._lock:
                self._outcomes.discard(outcome)

    def close(self) -> None:
        """Cancel what is still carried out, and wait until the thread has ended."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        async def until_stopped() -> None:
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

        # Leaving it cancels all tasks that are left, and waits for them.
        with asyncio.Runner() as runner:
            runner.run(until_stopped())
        with self._lock:
            left = [outcome for outcome in self._outcomes if not outcome.done()]
        for outcome in left:
            outcome.set_exception(ClientClosed())


def _hand_over(task: "asyncio.Task[_Result]", outcome: "Future[_Result]") -> None:
    if task.cancelled():
        # Whoever cancelled waits for nothing but the end; everybody else lost the loop.
        outcome.set_exception(ClientClosed())
    elif (error := task.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())
