"""Numbers for connections: in the order in which they came, at whichever worker of an instance, and never used again.

The clock is the machine's, the same for all of its processes, and is not set back; the lowest bits tell the worker.
"""

import re
import time

__all__ = ["ID_BYTES", "Serials", "id_of", "serial_of", "worker_of"]

ID_BYTES = 8
_WORKER_BITS = 8
_ID = re.compile(f"[0-9a-f]{{{2 * ID_BYTES}}}")


class Serials:
    """Gives the numbers of one worker."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._last = worker

    def next(self) -> int:
        """Give a number that is higher than all before it."""
        now_us = time.monotonic_ns() // 1_000
        self._last = max(now_us << _WORKER_BITS | self._worker, self._last + (1 << _WORKER_BITS))
        return self._last


def id_of(serial: int) -> str:
    """Write a number as the id of a connection; ids are in the order of the numbers."""
    return f"{serial:0{2 * ID_BYTES}x}"


def serial_of(connection_id: str) -> int | None:
    """Read an id; None where it is none."""
    return int(connection_id, 16) if _ID.fullmatch(connection_id) else None


def worker_of(connection_id: str) -> int | None:
    """Tell which worker of its instance a connection is at; None where this is no id."""
    serial = serial_of(connection_id)
    return None if serial is None else serial & ((1 << _WORKER_BITS) - 1)
