"""What ends a stream from outside (cancel), and what keeps it from being ended (keep alive)."""

from llmbridge.log.sealing import Seal, SealLog
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason, Producer, Sealer
from llmbridge.model.wire import Wire


class Stop:
    """Cancels streams and notes signs of life."""

    def __init__(self, log: SealLog, wire: Wire) -> None:
        self._log = log
        self._wire = wire

    async def cancel(self, name: StreamName, reason: str) -> Seal:
        """Seal the stream with the finish reason cancelled, unless it is sealed. Idempotent.

        Raises RedisUnavailable or AppendOutcomeUnknown.
        """
        fragment = self._wire.completion(FinishReason.CANCELLED, reason)
        seal = await self._log.seal(name, Sealer.CANCEL, FinishReason.CANCELLED, fragment)
        assert seal is not None, "a seal without conditions always tells how the stream is sealed"
        return seal

    async def keep_alive(self, name: StreamName, producer: Producer) -> None:
        """Note that a silent producer is alive. Raises as SealLog.keep_alive."""
        await self._log.keep_alive(name, producer)
