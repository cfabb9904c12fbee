"""Logs and their tails without Redis, to be in whatever state a test wants them: what Places read from."""

import asyncio
from dataclasses import dataclass, field

from llmbridge.errors import Expired, Lost, RedisUnavailable
from llmbridge.hub.tail import Listener, Tail
from llmbridge.log.reading import Page, Tip
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run
from llmbridge.rpc.wire import ProtoWire
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, Completion, Token

WIRE = ProtoWire()
INCARNATION = 7
PAGE = 3


@dataclass
class FakeHub:
    """Stands for Fanout and LogReader. `failures` is how many of the next questions Redis does not answer."""

    logs: dict[str, list[Run]] = field(default_factory=dict)
    tails: dict[str, Tail] = field(default_factory=dict)
    failures: int = 0

    def append(self, log: str, *texts: str, sealed: bool = False, tell: bool = True) -> None:
        """Store an entry; `tell` False: the wake-up is lost."""
        runs = self.logs.setdefault(log, [])
        assert not (runs and runs[-1].sealed)
        first = runs[-1].last + 1 if runs else 1
        message = SubscribeResponse(tokens=[Token(text=text) for text in texts])
        if sealed:
            message.completion.CopyFrom(Completion(finish_reason=FINISH_REASON_STOP))
        last = first + len(texts) + sealed - 1
        run = Run(INCARNATION, first, last, f"{last:08x}", 1_000, sealed, (message.SerializeToString(),))
        runs.append(run)
        tail = self.tails.get(log)
        if tell and tail is not None and not tail.closed and (tail.cursor.sequence if tail.cursor else 0) == first - 1:
            tail.extend(run)

    def look(self, log: str) -> None:
        """Bring a tail to where its log stands."""
        tail = self.tails.get(log)
        if tail is not None and not tail.closed and self.logs.get(log):
            tail.jump(self._tip(log))

    def close(self, log: str) -> None:
        """Have a tail close for nothing."""
        if log in self.tails:
            self.tails.pop(log).close()

    async def join(self, log: str, listener: Listener) -> Tail:
        """As Fanout.join."""
        await self._answer()
        tail = self.tails.get(log)
        if tail is None:
            tail = self.tails[log] = Tail(log, WIRE)
            tail.ready.set()
        tail.listeners[listener] = None
        if self.logs.get(log) and tail.cursor is None:
            tail.jump(self._tip(log))
        return tail

    def leave(self, tail: Tail, listener: Listener) -> None:
        """As Fanout.leave."""
        del tail.listeners[listener]
        if not tail.listeners and self.tails.get(tail.log) is tail:
            del self.tails[tail.log]

    async def last(self, log: str) -> Run | None:
        """As LogReader.last."""
        await self._answer()
        return self.logs[log][-1] if self.logs.get(log) else None

    async def earliest(self, log: str) -> Cursor | None:
        """As LogReader.earliest."""
        await self._answer()
        return Cursor(INCARNATION, 0, NO_CHECKSUM) if self.logs.get(log) else None

    async def after(self, log: str, cursor: Cursor, tip: Tip | None) -> Page:
        """As LogReader.after, in small pages."""
        await self._answer()
        if not self.logs.get(log):
            raise Expired
        tip = self._tip(log)
        if tip.cursor.sequence < cursor.sequence:
            raise Lost("earliest")
        runs = [run for run in self.logs[log] if run.last > cursor.sequence][:PAGE]
        if not runs:
            return Page(None, 0, tip)
        last = runs[-1]
        fragments = tuple(fragment for run in runs for fragment in run.fragments)
        page = Run(INCARNATION, runs[0].first, last.last, last.checksum, 1_000, last.sealed, fragments)
        return Page(page, cursor.sequence - page.first + 1, tip)

    def _tip(self, log: str) -> Tip:
        last = self.logs[log][-1]
        return Tip(Cursor.after(last), 100, 1, last.sealed)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise RedisUnavailable("it is away")
