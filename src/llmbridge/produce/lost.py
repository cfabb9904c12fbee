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


_Suspects = dict[StreamName, _Suspect]


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
        self._limit_ms = limit_ms
        self._watch_seconds = min(limit_ms, LONGEST_WATCH_MS) / 1000
        self._pause_seconds = min(limit_ms / 4, LONGEST_PAUSE_MS) / 1000
        self._monotonic = monotonic
        self._suspects: list[_Suspects] = [{} for _ in range(partitions)]

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._pause_seconds)
            await self.sweep()

    async def sweep(self) -> None:
        """Look at every open stream once. What can't be looked at now, the next sweep does, and forgets nothing."""
        for partition, suspects in enumerate(self._suspects):
            seen: _Suspects = {}
            try:
                await self._sweep_partition(partition, suspects, seen)
            except Unavailable as error:
                logger.debug("partition %d can't be swept for lost producers now: %s", partition, error)
                suspects.update(seen)
            except Exception:
                # Something strange in one partition concerns neither the others nor the bridge.
                logger.exception("partition %d can't be swept for lost producers", partition)
                suspects.update(seen)
            else:
                self._suspects[partition] = seen

    async def _sweep_partition(self, partition: int, suspects: _Suspects, seen: _Suspects) -> None:
        after = ""
        while True:
            sweep = await self._open_streams.sweep(partition, after, STREAMS_A_CALL)
            for stream in sweep.streams:
                if sweep.now_ms - stream.heard_ms >= self._limit_ms:
                    await self._suspect(stream, suspects, seen)
            after = sweep.next_member
            if not after:
                break

    async def _suspect(self, stream: OpenStream, suspects: _Suspects, seen: _Suspects) -> None:
        now = self._monotonic()
        suspect = suspects.get(stream.name)
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
