"""Trying again until there is an answer, in one way for every kind of request. Knows no channel and no messages.

That a request may be sent twice is for its callers to make sure of.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llmbridge.client.errors import ClientError, Unavailable
from llmbridge.client.retry import Backoff, RetryPolicy

_Answer = TypeVar("_Answer")


async def until_answered(
    policy: RetryPolicy, attempt: Callable[[float], Awaitable[_Answer]], give_up_after: float | None = None
) -> _Answer:
    """Make attempts, each with the seconds it may take; in between wait as the policy and the bridge's RetryInfo say.

    Raises Unavailable when `give_up_after` seconds (by default the policy's) would pass before the next attempt, and
    every other ClientError at once. The error's `outcome_unknown` is about all attempts.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + (policy.give_up_after if give_up_after is None else give_up_after)
    backoff = Backoff(policy)
    outcome_unknown = False
    attempts = 0
    while True:
        attempts += 1
        try:
            return await attempt(min(policy.attempt_timeout, max(deadline - clock(), 0.0)))
        except ClientError as error:
            outcome_unknown = outcome_unknown or error.outcome_unknown
            error.attempts, error.outcome_unknown = attempts, outcome_unknown
            if not isinstance(error, Unavailable):
                raise
            delay = backoff.next_delay(error.retry_delay)
            if clock() + delay >= deadline:
                raise
        await asyncio.sleep(delay)
