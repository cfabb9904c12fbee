"""An event loop on whose clock a stall of the process is no time.

A machine that is busy, or stands still for a second, lets every short timer in the process run out at once, while what
the timers wait for has not been read yet: a heartbeat comes too late, an answer is given up. Tests with short timers
would fail by that. On this loop they go on as if nothing had been. Knows nothing of what runs on it.
"""

import asyncio
import selectors
from time import monotonic

LONGEST_TURN_SECONDS = 0.1
"""So much of a turn of the loop counts, and so much later than asked may it wake up."""


class _Selector(selectors.DefaultSelector):
    """Counts the time that the loop waits, and a limited one between the waits."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = monotonic()
        self._turn_began = monotonic()
        self._stalled = False

    @property
    def now(self) -> float:
        """Never goes back, and never faster than time does."""
        return self._counted + min(monotonic() - self._turn_began, LONGEST_TURN_SECONDS)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._counted = self.now
        began = monotonic()
        ready = super().select(timeout)
        self._turn_began = monotonic()
        waited = self._turn_began - began
        stalled = timeout is not None and waited > max(timeout, 0.0) + LONGEST_TURN_SECONDS
        # After a stall it has to look what has come before a timer may end. Of two in a row the second counts: the
        # machine is that slow, and timers have to end some time.
        if not stalled or self._stalled:
            self._counted += waited
        self._stalled = stalled and not self._stalled
        return ready


class SteadyLoop(asyncio.SelectorEventLoop):
    """The loop that tests run on."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Tell the seconds that the loop was alive."""
        return self._clock.now
