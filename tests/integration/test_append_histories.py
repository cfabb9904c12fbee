"""Random histories of producers on real Redis, compared step by step with a model that only folds the rules.

Two streams of one session are written by three producers who retry, overlap, leave gaps, take over, end, are cancelled,
and whose streams are deleted under them. A lost reply is a request that is repeated though it was stored.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason, Producer, Sealer
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from llmbridge.v1.stream_pb2 import StreamRef
from tests.support.append_cases import request
from tests.support.log_parts import LogParts, log_parts
from tests.support.model_log import Create, ModelLog, Seal, produce_group
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, keys_without_expiry, running_bridge

PARTITIONS = 2
PRODUCERS = (Producer(1, "a"), Producer(1, "b"), Producer(2, ""))
SEALS = (Seal(Sealer.CANCEL, FinishReason.CANCELLED), Seal(Sealer.LOST, FinishReason.ERROR))


@dataclass(frozen=True)
class Ask:
    """Append; `offset` is counted from where the log would continue, None to have the number assigned."""

    stream: int
    producer: int
    offset: int | None
    tokens: int
    finish: FinishReason | None
    honest: bool

    def request(self, log: ModelLog, ahead: int = 0) -> Append:
        last = log.last + ahead
        first = 0 if self.offset is None else max(1, last + 1 + self.offset)
        numbers = range(first or last + 1, (first or last + 1) + self.tokens)
        text = "".join(chr(ord("a") + number % 26) if self.honest else "?" for number in numbers)
        return request(first, text, self.finish, PRODUCERS[self.producer])


@dataclass(frozen=True)
class Again:
    """Repeat a request made before, whatever came of it."""

    stream: int
    back: int


@dataclass(frozen=True)
class Together:
    """Append at the same moment, so that the requests share a script call."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Group:
    """Append in a group, as ProduceMany does. Offsets are counted as if each before it were stored as asked."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class End:
    """Seal by the bridge, create, or delete."""

    stream: int
    how: Seal | Create | None


FORGET_SCRIPTS = "forget scripts"
STREAMS = st.integers(0, 1)
OFFSETS = st.none() | st.just(0) | st.integers(-6, 2)
FINISHES = st.sampled_from([None] * 7 + [FinishReason.STOP, FinishReason.LENGTH])
ASKS = st.builds(
    Ask, STREAMS, st.integers(0, 2), OFFSETS, st.integers(1, 4), FINISHES, st.sampled_from([True] * 5 + [False])
) | st.builds(Ask, STREAMS, st.integers(0, 2), OFFSETS, st.just(0), st.sampled_from([FinishReason.STOP]), st.just(True))
STEPS = st.one_of(
    ASKS,
    ASKS,
    st.builds(Again, STREAMS, st.integers(0, 3)),
    st.builds(Together, st.lists(ASKS, min_size=2, max_size=5).map(tuple)),
    st.builds(Group, st.lists(ASKS, min_size=1, max_size=8).map(tuple)),
    st.builds(End, STREAMS, st.sampled_from([*SEALS, Create(), None])),
    st.just(FORGET_SCRIPTS),
)


@dataclass
class Rig:
    """Redis, the parts that write to it, a bridge that reads from it."""

    parts: LogParts
    bridge: RunningBridge


@pytest.fixture
async def rig(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[Rig]:
    async with (
        log_parts(each_redis.url, key_prefix, partitions=PARTITIONS) as parts,
        running_bridge(each_redis.url, key_prefix=key_prefix, partitions=PARTITIONS) as bridge,
    ):
        yield Rig(parts, bridge)
    assert await keys_without_expiry(each_redis.url, key_prefix) == []


@dataclass
class History:
    """Carries steps out on both sides and compares."""

    rig: Rig
    session: str = field(default_factory=lambda: secrets.token_hex(6))
    models: list[ModelLog] = field(default_factory=lambda: [ModelLog(), ModelLog()])
    made: list[list[Append]] = field(default_factory=lambda: [[], []])

    def name(self, stream: int) -> StreamName:
        return StreamName(self.session, f"m{stream}")

    async def step(self, step: Any) -> None:
        match step:
            case Ask(stream=stream):
                await self._produce(stream, step.request(self.models[stream]))
            case Again(stream, back):
                if self.made[stream]:
                    await self._produce(stream, self.made[stream][-1 - back % len(self.made[stream])])
            case Together(asks):
                await self._append_together(asks)
            case Group(asks):
                await self._produce_group(asks)
            case End(stream, None):
                assert await self.rig.parts.streams.delete(self.name(stream)) is bool(self.models[stream].entries)
                self.models[stream] = ModelLog()
            case End(stream, Create()):
                if not self.models[stream].entries:
                    await self.rig.parts.store(self.name(stream), Create())
                    self.models[stream].store(Create())
            case End(stream, Seal() as seal):
                assert await self.rig.parts.seal(self.name(stream), seal) == self.models[stream].seal(seal)
            case _:
                await self.rig.parts.client.script_flush()
        await self._compare()

    async def _produce(self, stream: int, asked: Append) -> None:
        self.made[stream].append(asked)
        outcome = await self.rig.parts.produce_outcome(self.name(stream), asked)
        assert outcome == self.models[stream].produce(asked)
        assert outcome.vouched_by(await self.rig.parts.entries(self.name(stream)))

    async def _append_together(self, asks: tuple[Ask, ...]) -> None:
        asked = [(ask.stream, ask.request(self.models[ask.stream])) for ask in asks]
        outcomes = await asyncio.gather(*(self.rig.parts.append(self.name(s), one) for s, one in asked))
        for stream, one in asked:
            self.made[stream].append(one)
        assert outcomes == [self.models[stream].append(one) for stream, one in asked]
        for (stream, _), outcome in zip(asked, outcomes, strict=True):
            assert outcome.vouched_by(await self.rig.parts.entries(self.name(stream)))

    async def _produce_group(self, asks: tuple[Ask, ...]) -> None:
        ends = [model.last for model in self.models]
        asked: list[tuple[int, Append]] = []
        for ask in asks:
            ahead = ends[ask.stream] - self.models[ask.stream].last
            one = ask.request(self.models[ask.stream], ahead)
            ends[ask.stream] = max(ends[ask.stream], one.first + one.records - 1)
            asked.append((ask.stream, one))
            self.made[ask.stream].append(one)
        outcomes = await self.rig.parts.produce_all([(self.name(stream), one) for stream, one in asked])
        assert outcomes == produce_group(self.models, asked)
        for (stream, _), outcome in zip(asked, outcomes, strict=True):
            assert outcome.vouched_by(await self.rig.parts.entries(self.name(stream)))

    async def _compare(self) -> None:
        for stream, model in enumerate(self.models):
            assert await self.rig.parts.entries(self.name(stream)) == model.entries
            state = await self.rig.parts.streams.inspect(self.name(stream))
            expected = model.state
            assert (state is None) is (expected is None)
            if state is not None and expected is not None:
                assert (state.first_sequence, state.last_sequence) == (1, expected.last)
                assert (state.sealer, state.finish_reason) == (expected.sealer, expected.finish_reason)
                assert state.producer_epoch == (expected.producer.epoch if expected.producer else 0)

    async def read_back(self) -> None:
        """Subscribe to what was stored: the same records, dense, with the right end."""
        for stream, model in enumerate(self.models):
            if not model.entries:
                continue
            seal = SEALS[0]
            assert await self.rig.parts.seal(self.name(stream), seal) == model.seal(seal)
            ref = StreamRef(session_id=self.session, model_id=f"m{stream}")
            read = SubscribeResponse()
            async for message in self.rig.bridge.bridge.Subscribe(SubscribeRequest(stream=ref), timeout=10):
                assert message.first_sequence == len(read.tokens) + 1
                read.tokens.extend(message.tokens)
                if message.HasField("completion"):
                    read.completion.CopyFrom(message.completion)
                read.cursor = message.cursor
            assert read.HasField("completion")
            cursor = Cursor.parse(read.cursor)
            stored = await self.rig.parts.entries(self.name(stream))
            assert (cursor.sequence, cursor.checksum) == (model.last, stored[-1].cursor_checksum)
            read.ClearField("cursor")
            assert read == SubscribeResponse.FromString(b"".join(entry.fragment for entry in model.entries))

    async def check_indexes(self) -> None:
        """The open index names what is open, the session index what exists; the feed tells each creation and end."""
        keys = self.rig.parts.keys
        feed = await self.rig.parts.feed(keys.partition_of(self.session))
        assert [n for n, _ in feed] == list(range(1, len(feed) + 1))
        for stream, model in enumerate(self.models):
            named = keys.stream(self.name(stream))
            is_open = await self.rig.parts.client.zscore(named.open_index, named.open_member) is not None
            assert is_open is (bool(model.entries) and not model.sealed)
            listed = await self.rig.parts.client.zscore(named.session_index, named.session_member) is not None
            assert listed is bool(model.entries)
            created = [(None, 0)] if model.entries else []
            completed = [(model.entries[-1].sealer, model.last)] if model.sealed else []
            state = await self.rig.parts.streams.inspect(self.name(stream))
            # Not those of deleted streams of the name.
            incarnation = state.incarnation if state else None
            ours = [entry for _, entry in feed if entry.stream == self.name(stream)]
            events = [entry for entry in ours if entry.cursor.incarnation == incarnation]
            assert [(entry.sealer, entry.cursor.sequence) for entry in events] == created + completed


# Examples share the bridge, not the streams: each has a session of its own.
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=1, max_size=20))
async def test_redis_does_what_the_model_does(rig: Rig, steps: list[Any]) -> None:
    history = History(rig)
    for step in steps:
        await history.step(step)
    await history.check_indexes()
    await history.read_back()
    await history.check_indexes()
