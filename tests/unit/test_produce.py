"""Produce: slices what is stored already in part, however often the log moves on meanwhile."""

from collections import deque
from dataclasses import dataclass, field
from typing import cast

import pytest

from llmbridge.errors import Completed
from llmbridge.log.appending import Appended, AppendLog, AppendOutcome, Overlap
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason
from llmbridge.produce.append import Produce
from tests.support.append_cases import request
from tests.support.model_log import WIRE

NAME = StreamName("s", "m")
STOP = FinishReason.STOP


def _appended(duplicate: bool) -> Appended:
    return Appended("1-5-00000000", 5, duplicate)


@dataclass
class Log:
    """Answers as the test says and notes what it was asked."""

    answers: deque[AppendOutcome | Exception]
    asked: list[Append] = field(default_factory=list)

    async def append(self, name: StreamName, asked: Append) -> AppendOutcome:
        assert name == NAME
        self.asked.append(asked)
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _produce(asked: Append, *answers: AppendOutcome | Exception) -> tuple[Appended, list[Append]]:
    log = Log(deque(answers))
    done = await Produce(cast("AppendLog", log), WIRE).append(NAME, asked)
    assert not log.answers
    return done, log.asked


@pytest.mark.parametrize("duplicate", [True, False])
async def test_what_the_log_takes_as_a_whole_is_answered_as_it_says(duplicate: bool) -> None:
    whole = request(1, "abcde")
    assert await _produce(whole, _appended(duplicate)) == (_appended(duplicate), [whole])


@pytest.mark.parametrize("rest_is_duplicate", [True, False])
async def test_a_request_that_had_to_be_sliced_was_not_wholly_stored_before(rest_is_duplicate: bool) -> None:
    # A rival repeat of the same request may store the rest between the two calls.
    done, asked = await _produce(request(1, "abcde"), Overlap(2), _appended(rest_is_duplicate))
    assert not done.duplicate
    assert asked[1:] == [request(3, "cde")]


async def test_it_slices_again_when_the_log_moved_on() -> None:
    done, asked = await _produce(request(1, "abcd", STOP), Overlap(1), Overlap(3), Overlap(4), _appended(False))
    assert not done.duplicate
    assert asked[1:] == [request(2, "bcd", STOP), request(4, "d", STOP), request(5, finish=STOP)]


async def test_what_is_refused_in_between_is_told() -> None:
    with pytest.raises(Completed):
        await _produce(request(1, "ab"), Overlap(1), Completed("cancelled", "cancel"))
