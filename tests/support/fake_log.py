"""The fake bridge's logs in memory, and the rules of appending to them."""

from dataclasses import dataclass, field

from llmbridge.v1 import bridge_service_pb2 as bridge_pb2
from llmbridge.v1 import stream_pb2, token_pb2
from tests.support.faults import Fault

Key = tuple[str, str, str]


@dataclass(slots=True)
class Log:
    incarnation: int
    tokens: list[token_pb2.Token] = field(default_factory=list)
    completion: token_pb2.Completion | None = None
    producers: list[tuple[int, str]] = field(default_factory=list)
    """Who appended each record; empty as long as all were put there without a call."""
    sealer: stream_pb2.Sealer.ValueType = stream_pb2.SEALER_UNSPECIFIED
    first: int = 1

    @property
    def last(self) -> int:
        return len(self.tokens) + (self.completion is not None)

    @property
    def producer(self) -> tuple[int, str] | None:
        return self.producers[-1] if self.producers else None

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    def cursor(self, sequence: int) -> str:
        return f"{self.incarnation}-{sequence}"

    def admits(self, epoch: int, producer_id: str) -> bool:
        """Whether this producer was not fenced off by another."""
        return self.producer is None or self.producer == (epoch, producer_id) or epoch > self.producer[0]

    def repeats(self, request: bridge_pb2.ProduceRequest) -> bool:
        """Whether a sealed log takes the request for a repetition."""
        last_token = request.first_sequence + len(request.tokens) - 1
        if self.producer != (request.producer_epoch, request.producer_id):
            return False
        if not request.HasField("completion"):
            return last_token <= len(self.tokens)
        return last_token == len(self.tokens) and request.completion == self.completion


def key_of(ref: stream_pb2.StreamRef) -> Key:
    return ref.session_id, ref.model_id, ref.response_id


def completed(log: Log) -> Fault:
    assert log.completion is not None
    metadata = {
        "finish_reason": token_pb2.FinishReason.Name(log.completion.finish_reason),
        "sealer": stream_pb2.Sealer.Name(log.sealer),
    }
    return Fault("COMPLETED", metadata=metadata)


def fenced(log: Log) -> Fault:
    assert log.producer is not None
    return Fault("FENCED", metadata={"epoch": str(log.producer[0])})


def gap(expected: int, received: int) -> Fault:
    return Fault("SEQUENCE_GAP", metadata={"expected": str(expected), "received": str(received)})


class Logs(dict[Key, Log]):
    """All streams. Every incarnation is another number."""

    def __init__(self) -> None:
        super().__init__()
        self._incarnations = 0

    def create(self, key: Key) -> Log:
        self._incarnations += 1
        log = self[key] = Log(1_700_000_000_000_000 + self._incarnations)
        return log

    def get_or_create(self, key: Key) -> Log:
        return self.get(key) or self.create(key)

    def append(self, request: bridge_pb2.ProduceRequest) -> Fault | None:
        """Decide and append as the contract says; None means that the request is stored."""
        key, first = key_of(request.stream), request.first_sequence
        producer = (request.producer_epoch, request.producer_id)
        if key not in self and first > 1:
            return gap(1, first)
        log = self.get_or_create(key)
        if log.completion is not None and not log.repeats(request):
            return completed(log)
        if not log.admits(*producer):
            return fenced(log)
        if first > log.last + 1 or (first <= log.last and log.producer != producer):
            return gap(log.last + 1, first)
        for number, token in enumerate(request.tokens, start=first):
            if number > len(log.tokens):
                log.tokens.append(token)
            elif log.tokens[number - 1] != token:
                return Fault("SEQUENCE_CONFLICT", metadata={"sequence": str(number)})
        if request.HasField("completion") and log.completion is None:
            log.completion, log.sealer = request.completion, stream_pb2.SEALER_PRODUCER
        log.producers += [producer] * (log.last - len(log.producers))
        return None

    def lose_tail(self, key: Key, keep: int) -> None:
        """Go back to the first `keep` records, as a failover to a replica that lags does."""
        log = self.get(key)
        if log is None or log.last <= keep:
            return
        if keep == 0:
            del self[key]
            return
        del log.tokens[keep:]
        del log.producers[keep:]
        log.completion, log.sealer = None, stream_pb2.SEALER_UNSPECIFIED
