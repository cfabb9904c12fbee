"""Does to a stream's log in Redis what crashes, failovers and wrong clocks do, by the documented layout of entries."""

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

import redis

from llmbridge.log.keys import Keys
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import Token


@dataclass(frozen=True)
class LogSurgery:
    """Every operation is one step for readers: they see the log before or after it."""

    client: "redis.Redis"
    prefix: str
    stream: StreamRef
    partitions: int = 64

    @property
    def key(self) -> str:
        name = StreamName(self.stream.session_id, self.stream.model_id, self.stream.response_id)
        return Keys(self.prefix, self.partitions).stream(name).log

    @property
    def incarnation(self) -> int:
        return int(self._entries()[-1][0].split(b"-")[0])

    def rewrite(self, incarnation: int, *entries: list[str], after: int = 0) -> None:
        """Put these entries (each a list of texts) in place of all after the first `after` entries."""
        kept = self._entries()[:after]
        last = int(kept[-1][0].split(b"-")[1]) if kept else 0
        chain = kept[-1][1][b"i"].split(b" ")[1].decode() if kept else "00000000"
        fragments = [SubscribeResponse(tokens=map(_token, texts)).SerializeToString() for texts in entries]
        with self.client.pipeline(transaction=True) as step:
            step.delete(self.key)
            for entry_id, stored in kept:
                step.xadd(self.key, stored, id=entry_id)
            for texts, fragment in zip(entries, fragments, strict=True):
                last += len(texts)
                appended_ms, epoch, producer_id = 1_760_000_000_000, 0, ""
                largest, most = max(map(len, fragments)), max(map(len, entries))
                checksum = f"{zlib.crc32(fragment):08x}"
                chain = hashlib.sha1((chain + checksum).encode()).hexdigest()[:8]
                info = f"{appended_ms} {chain} {largest} {most} {checksum} {epoch} {producer_id}"
                fields: dict[Any, Any] = {"n": len(texts), "b": fragment, "i": info}
                step.xadd(self.key, fields, id=f"{incarnation}-{last}")
            step.pexpire(self.key, 60_000)
            step.execute()

    def lose_tail(self, keep: int) -> None:
        """Go back to the first `keep` entries, as a failover to a replica that lags does."""
        self.rewrite(0, after=keep)

    def wake(self) -> None:
        """Have readers look, so that a test need not wait for the safety poll."""
        self.client.publish(self.key, b"")

    def _entries(self) -> list[tuple[bytes, dict[Any, Any]]]:
        entries: Any = self.client.xrange(self.key)
        return list(entries)


def _token(text: str) -> Token:
    return Token(text=text)
