"""Finds producers that died silently and completes their streams, so that no reader waits for ever.

Every bridge sweeps all open streams, read here or not. A stream is sealed only if Redis' clock says that nothing was
heard for the limit and this process has itself seen it unchanged for a while on its monotonic clock: a clock that
jumps kills nothing. The seal itself checks again, atomically, that nothing came in between.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from llmbridge.errors import Unavailable
from llmbridge.log.open_streams import OpenStream, OpenStreams
from llmbridge.log.sealing import SealLog, Silence
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason, Sealer
from llmbridge.model.wire import Wire

LONGEST_PAUSE_MS = 10_000
LONGEST_WATCH_MS = 5_000
STREAMS_A_CALL = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Suspect:
    stream: OpenStream
    since: float


class LostProducers:
    """Sweeps. `run` must be running."""

    def __init__(
        self,
        open_streams: OpenStreams,
        log: SealLog,
        wire: Wire,
        partitions: int,
        limit_ms: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._open_streams = open_streams
        self._log = log
        self._wire = wire
        self._partitions = partitions
        self._limit_ms = limit_ms
        self._watch_seconds = min(limit_ms, LONGEST_WATCH_MS) / 1000
        self._pause_seconds = min(limit_ms / 4, LONGEST_PAUSE_MS) / 1000
        self._monotonic = monotonic
        self._suspects: dict[StreamName, _Suspect] = {}

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._pause_seconds)
            try:
                await self.sweep()
            except Unavailable as error:
                logger.debug("the sweep for lost producers was cut short: %s", error)
            except Exception:
                # Something strange in one partition must not end the sweep for good, nor the bridge.
                logger.exception("the sweep for lost producers failed, the next one begins anew")

    async def sweep(self) -> None:
        """Look at every open stream once. Raises Unavailable; the next sweep goes on with what this one saw."""
        seen: dict[StreamName, _Suspect] = {}
        try:
            await self._sweep_partitions(seen)
        except Unavailable:
            self._suspects |= seen
            raise
        self._suspects = seen

    async def _sweep_partitions(self, seen: dict[StreamName, _Suspect]) -> None:
        for partition in range(self._partitions):
            after = ""
            while True:
                sweep = await self._open_streams.sweep(partition, after, STREAMS_A_CALL)
                for stream in sweep.streams:
                    if sweep.now_ms - stream.heard_ms >= self._limit_ms:
                        await self._suspect(stream, seen)
                after = sweep.next_member
                if not after:
                    break

    async def _suspect(self, stream: OpenStream, seen: dict[StreamName, _Suspect]) -> None:
        now = self._monotonic()
        suspect = self._suspects.get(stream.name)
        if suspect is None or suspect.stream != stream:
            suspect = _Suspect(stream, now)
        seen[stream.name] = suspect
        if now - suspect.since < self._watch_seconds:
            return
        message = f"producer lost: nothing was heard of it for {self._limit_ms} ms"
        fragment = self._wire.completion(FinishReason.ERROR, message)
        silence = Silence(stream.last_id, self._limit_ms)
        seal = await self._log.seal(stream.name, Sealer.LOST, FinishReason.ERROR, fragment, silence)
        if seal is not None and seal.sealed_now:
            logger.warning("sealed %s: %s", stream.name, message)
