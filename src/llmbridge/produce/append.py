"""Produce: append a request to its stream, whatever of it is stored already."""

from dataclasses import replace

from llmbridge.log.appending import Appended, AppendLog, Overlap
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
            request = self._after(request, outcome.last)
            outcome = await self._log.append(name, request)
        # A request that was sliced was not wholly stored before, even if a rival retry stored the rest meanwhile.
        return replace(outcome, duplicate=False) if sliced else outcome

    def _after(self, request: Append, last: int) -> Append:
        stored = last - request.first + 1
        return replace(
            request,
            first=last + 1,
            tokens=request.tokens - stored,
            fragment=self._wire.skip(request.fragment, stored),
        )
