"""Produce: append requests to their streams, whatever of them is stored already."""

from collections.abc import Sequence

from llmbridge.errors import SequenceGap
from llmbridge.log.appending import Appended, AppendLog, AppendOutcome, Item, Overlap
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append
from llmbridge.model.wire import Wire


class Produce:
    """Appends requests, slicing those of which the log has the first part."""

    def __init__(self, log: AppendLog, wire: Wire) -> None:
        self._log = log
        self._wire = wire

    async def append(self, name: StreamName, request: Append) -> Appended:
        """Store all of `request` exactly once. Raises as AppendLog.append."""
        outcome = await self._log.append(name, request)
        sliced = False
        while isinstance(outcome, Overlap):
            sliced = True
            request = self._rest(request, outcome)
            outcome = await self._log.append(name, request)
        # A request that was sliced was not wholly stored before, even if a rival retry stored the rest meanwhile.
        return outcome._replace(duplicate=False) if sliced else outcome

    async def append_all(self, items: Sequence[Item], source: object) -> list[Appended | Exception]:
        """Store all of each request exactly once; gives what `append` returns or raises, as AppendLog.append_all."""
        outcomes = await self._log.append_all(items, source)
        if Overlap in map(type, outcomes):
            await self._append_rests(list(items), outcomes, source)
        return outcomes  # type: ignore[return-value]  # none is an Overlap any more

    async def _append_rests(self, rests: list[Item], outcomes: list[AppendOutcome | Exception], source: object) -> None:
        """Append what is left of those of which the log has the first part; put in place what came of it."""
        sliced: set[int] = set()
        while again := _to_repeat(rests, outcomes):
            for place in again:
                outcome = outcomes[place]
                if isinstance(outcome, Overlap):
                    stream, request = rests[place]
                    rests[place] = stream, self._rest(request, outcome)
                    sliced.add(place)
            found = await self._log.append_all([rests[place] for place in again], source)
            for place, outcome in zip(again, found, strict=True):
                outcomes[place] = outcome
        for place in sliced:
            outcome = outcomes[place]
            if isinstance(outcome, Appended):
                outcomes[place] = outcome._replace(duplicate=False)

    def _rest(self, request: Append, overlap: Overlap) -> Append:
        stored = overlap.last - request.first + 1
        return request._replace(
            first=overlap.last + 1,
            tokens=request.tokens - stored,
            fragment=self._wire.skip(request.fragment, stored),
        )


def _to_repeat(items: Sequence[Item], outcomes: Sequence[AppendOutcome | Exception]) -> list[int]:
    """Tell which to append again: those of which a rest is left, and what the same producer sent behind them.

    That found a gap, since an overlap stores nothing.
    """
    if not any(type(outcome) is Overlap for outcome in outcomes):
        return []
    again: list[int] = []
    behind: set[object] = set()
    for place, ((stream, request), outcome) in enumerate(zip(items, outcomes, strict=True)):
        writer = stream.log, request.producer
        if isinstance(outcome, Overlap):
            behind.add(writer)
            again.append(place)
        elif isinstance(outcome, SequenceGap) and writer in behind:
            again.append(place)
    return again
