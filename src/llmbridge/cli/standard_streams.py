"""Standard input, output and error as whoever started the process left them: closed, perhaps, or read by nobody."""

import os
import sys

__all__ = ["announce", "forget_output", "open_missing"]


def open_missing() -> None:
    """Gives those that are closed something else than the next file or socket, which would get their number.

    What is printed then goes nowhere, and reading standard input fails.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None and os.open(os.devnull, os.O_WRONLY) == number and number:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 - for as long as the process lives


def forget_output() -> None:
    """Has what is still buffered, and all that comes, go nowhere: nobody reads standard output any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def announce(line: str) -> None:
    """Prints where a server is. It serves on when nobody reads that, or only the first of several lines."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        forget_output()
