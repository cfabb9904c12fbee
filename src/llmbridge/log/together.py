"""Several questions to Redis at once."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

_Answer = TypeVar("_Answer")


async def all_of(questions: Iterable[Awaitable[_Answer]]) -> list[_Answer]:
    """Await them all, sharing round trips, and answer in their order. Raises what the first that failed raised.

    All are waited for, also after a failure: nothing goes on that nobody awaits.
    """
    answers: list[_Answer] = []
    for answer in await asyncio.gather(*questions, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers
