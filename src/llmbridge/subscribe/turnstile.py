"""Bounds how many cohorts of a call do something at the same time; the others wait, first come, first served."""

from collections import deque
from collections.abc import Callable

from llmbridge.subscribe.cohort import Cohort


class Turnstile:
    """Lets so many in at once. `begin` is called with each that is let in; whoever is in must `leave`."""

    def __init__(self, at_once: int, begin: Callable[[Cohort], None]) -> None:
        self._free = at_once
        self._begin = begin
        self._waiting: deque[Cohort] = deque()

    def enter(self, cohort: Cohort) -> None:
        """Let one in, now or later."""
        if self._free:
            self._free -= 1
            self._begin(cohort)
        else:
            self._waiting.append(cohort)

    def leave(self) -> None:
        """Let in the next one, if one waits."""
        if self._waiting:
            self._begin(self._waiting.popleft())
        else:
            self._free += 1
