"""A worker of `llmbridge serve --workers`: started by its supervisor, never by people, and gone with it.

Standard input is the assignment, then a leash (see leash.py); standard output is what the supervisor is told; logs go
to standard error, as everywhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys

from llmbridge.cli.leash import exit_with_parent


def main() -> None:
    """Serve as assigned, until SIGTERM."""
    line = _line()
    # What is loaded from here on takes about a second, in which the supervisor may end, too.
    from llmbridge.server.assignment import Assignment

    assignment = Assignment.decode(line)
    # No time for a drain: its Redis may have gone with the supervisor, and the next one wants the port. Where that was
    # killed, nobody else removes the sockets.
    exit_with_parent(ask=lambda: shutil.rmtree(assignment.place.directory, ignore_errors=True), grace_seconds=0)
    logging.basicConfig(
        level=assignment.settings.log_level,
        format=f"%(asctime)s %(levelname)s worker {assignment.place.worker}: %(name)s: %(message)s",
    )
    told = os.dup(1)
    # Whatever else is printed must not pass for what the supervisor is told.
    os.dup2(2, 1)

    from llmbridge.cli.serve import EXIT_CANNOT_START, loop_factory
    from llmbridge.server.worker import WorkerCannotStart, serve

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve(assignment, lambda said: os.write(told, said.encode())))
    except WorkerCannotStart:
        sys.exit(EXIT_CANNOT_START)


def _line() -> bytes:
    # Byte by byte would be slow, more than the line can't come: the supervisor writes nothing else.
    read = b""
    while not read.endswith(b"\n"):
        piece = os.read(0, 65_536)
        if not piece:
            sys.exit("llmbridge: a worker is started by `llmbridge serve --workers`")
        read += piece
    return read


if __name__ == "__main__":
    main()
