"""How often and how long a failed request is tried again. Pure: knows no clock and no connection."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again; all times in seconds.

    The waits grow from `first_delay` by `multiplier` up to `longest_delay`; each is cut by up to half at random, so
    that clients which lost the same bridge don't come back in step. `attempt_timeout` bounds one attempt of a
    request or an append, `give_up_after` all its attempts together.
    """

    first_delay: float = 0.05
    multiplier: float = 2.0
    longest_delay: float = 3.0
    attempt_timeout: float = 5.0
    give_up_after: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.first_delay <= self.longest_delay or self.multiplier < 1:
            raise ValueError("delays must be positive and must not shrink")
        if self.attempt_timeout <= 0 or self.give_up_after <= 0:
            raise ValueError("attempt_timeout and give_up_after must be positive")


class Backoff:
    """The waits of one series of failures."""

    def __init__(self, policy: RetryPolicy, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._policy = policy
        self._uniform = uniform
        self._delay = policy.first_delay

    def next_delay(self, minimum: float = 0.0) -> float:
        """Say how long to wait now: at least `minimum` (what the bridge asked for), plus jitter. In seconds.

        The bridge asks the same of all its clients: the jitter is up to half of the longer of the two.
        """
        delay = self._delay
        self._delay = min(delay * self._policy.multiplier, self._policy.longest_delay)
        return max(minimum, delay / 2) + self._uniform(0.0, max(minimum, delay) / 2)

    def reset(self) -> None:
        """Begin anew: the last attempt succeeded."""
        self._delay = self._policy.first_delay


class Outage:
    """A series of failures that a reader rides out: when to try again, and when it has lasted for too long."""

    def __init__(self, policy: RetryPolicy, retry_for: float | None) -> None:
        """`retry_for` is how many seconds it may last; None: any."""
        self._backoff = Backoff(policy)
        self._retry_for = retry_for
        self._began: float | None = None

    def next_delay(self, now: float, minimum: float) -> float | None:
        """Say how long to wait at this moment, as Backoff does; None where the outage would last for too long.

        After None, the next failure begins another outage.
        """
        if self._began is None:
            self._began = now
        delay = self._backoff.next_delay(minimum)
        if self._retry_for is not None and now + delay - self._began > self._retry_for:
            self._began = None
            return None
        return delay

    def over(self) -> None:
        """Note that the last attempt succeeded."""
        self._backoff.reset()
        self._began = None
