"""Ties a child process to the process that started it, so that none is left behind, not even after kill -9.

The parent holds the other end of the child's standard input and never writes to it; when the parent is gone, however it
went, the operating system closes that end and the child reads the end of file. `python -m llmbridge.cli.leash serve …`
runs the command line on such a leash. Knows nothing of what the child does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

__all__ = ["exit_with_parent"]

# How long a child that was asked to end may take: a bridge drains within this.
_GRACE_SECONDS = 15.0


def exit_with_parent(*, ask: Callable[[], None] | None = None, grace_seconds: float = _GRACE_SECONDS) -> None:
    """Ends this process when its standard input ends.

    `ask` is called first, in another thread, and the process then has `grace_seconds` to end by itself before it is
    ended without further ado; without `ask` it is ended at once. Standard input must not be used for anything else.
    """

    def watch() -> None:
        # Not sys.stdin: a thread that waits inside its lock breaks the interpreter's shutdown.
        while os.read(0, 4096):
            pass
        if ask is not None:
            ask()
            threading.Event().wait(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="leash", daemon=True).start()


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    exit_with_parent(ask=_terminate)
    from llmbridge.cli.app import main

    sys.argv[0] = "llmbridge"
    main()
