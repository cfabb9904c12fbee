"""Numbers for those who share a call: always another one, so that what is said late of one meets no other."""

from collections.abc import Container

LARGEST_NUMBER = 0xFFFF_FFFF


class Numbers:
    """Counts up from 1, and begins anew after the largest number that the contract has."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, in_use: Container[int]) -> int:
        """Give the next number that is not in use."""
        while True:
            self._last = self._last % LARGEST_NUMBER + 1
            if self._last not in in_use:
                return self._last
