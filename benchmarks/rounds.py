"""What a load process is told to do, and what it reports: plain values that travel as JSON lines.

A round is prepared (readers attach, connections open), then started by a word of the benchmark, so that the servers'
processor time can be read in between. Knows nothing of transports and processes.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar


class Reading(StrEnum):
    """How a reader reads; only the bridge knows others than by cursor."""

    CURSOR = "cursor"
    AUTOMATIC = "automatic"
    """As the only member of a group, which acknowledges automatically."""
    EXPLICIT = "explicit"
    """As the only member of a group; acknowledges message by message, all that have come while the last call ran."""


@dataclass(frozen=True, slots=True)
class ProduceRound:
    """Appends tokens to streams, all streams at once, each with one call in flight."""

    kind: ClassVar[str] = "produce"
    streams: tuple[str, ...]
    tokens: int
    """For each stream."""
    deadline_s: float
    per_call: int = 1
    interval_s: float = 0.0
    """Between the starts of a stream's calls; 0 means the next one starts when the last is answered."""
    first_sequence: int = 1
    final: bool = True
    """Whether the last call also ends the stream."""
    awaited: bool = True
    """Whether a stream's next call waits for the answer to the last one, rather than for its turn only."""


@dataclass(frozen=True, slots=True)
class StepRound:
    """Appends as an inference engine does: in each step one token to every stream."""

    kind: ClassVar[str] = "step"
    streams: tuple[str, ...]
    steps: int
    interval_s: float
    """Between the starts of two steps. A step that is late begins at once."""
    deadline_s: float
    first_sequence: int = 1
    final: bool = False
    """Whether the last step also ends the streams."""


@dataclass(frozen=True, slots=True)
class ReadRound:
    """Reads streams to their ends, one reader for each name given; a name given twice gets two readers."""

    kind: ClassVar[str] = "read"
    streams: tuple[str, ...]
    tokens: int
    """Each stream's length."""
    deadline_s: float
    reading: Reading = Reading.CURSOR
    first_timed: int = 1
    """The first token of each stream of which the latency is told."""
    last_timed: int | None = None
    """The last one; None: the stream's last."""


@dataclass(frozen=True, slots=True)
class ReplayRound:
    """Reads one sealed stream from its beginning, several times, one fresh reader after the other."""

    kind: ClassVar[str] = "replay"
    stream: str
    tokens: int
    times: int
    deadline_s: float
    reading: Reading = Reading.CURSOR


Round = ProduceRound | StepRound | ReadRound | ReplayRound


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a load process did in a round."""

    started_ns: int
    ended_ns: int
    tokens: int
    """Produced, or delivered summed over the readers."""
    messages: int
    """Calls answered, or messages received."""
    latencies_us: tuple[int, ...]
    """Of each produce call or step, or from sending to receiving of each timed token; empty for a replay."""
    behind_us: int = 0
    """How late the step that was latest began."""


def round_to_json(spec: Round) -> dict[str, Any]:
    """A round as values that JSON knows."""
    return {"kind": spec.kind, **asdict(spec)}


def round_from_json(value: dict[str, Any]) -> Round:
    """The opposite of round_to_json. Raises ValueError for another kind of round."""
    fields = dict(value)
    kind = fields.pop("kind")
    if "reading" in fields:
        fields["reading"] = Reading(fields["reading"])
    if kind == ReplayRound.kind:
        return ReplayRound(**fields)
    fields["streams"] = tuple(fields["streams"])
    if kind == ProduceRound.kind:
        return ProduceRound(**fields)
    if kind == StepRound.kind:
        return StepRound(**fields)
    if kind == ReadRound.kind:
        return ReadRound(**fields)
    raise ValueError(f"unknown kind of round: {kind!r}")
