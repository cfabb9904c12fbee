"""The parts that write to Redis, without gRPC; and what they left there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import redis.asyncio

from llmbridge.errors import AppendRefused, Completed, Fenced, SequenceConflict, SequenceGap
from llmbridge.groups.places import GroupPlaces
from llmbridge.log.appending import Appended, AppendLog, LogDefaults, Overlap
from llmbridge.log.commands import Commands
from llmbridge.log.dead_letters import DeadLetterLog
from llmbridge.log.feed import LifecycleEntry, number_of
from llmbridge.log.group_state import GroupStates
from llmbridge.log.groups import GroupLog, GroupPlace, GroupPolicy, GroupSettings
from llmbridge.log.keys import Keys
from llmbridge.log.open_streams import OpenStreams
from llmbridge.log.sealing import SealLog
from llmbridge.log.servers import NO_REPLICA_ACKS, Servers
from llmbridge.log.streams import StreamLog
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason, Producer, Sealer
from llmbridge.produce.append import Produce
from llmbridge.sequencing import Decision
from tests.support.model_log import WIRE, Create, Outcome, Seal, Step, StoredEntry

DAY_MS = 86_400_000
NO_LIMITS = LogDefaults(retention_ms=DAY_MS, max_length=0, max_stream_tokens=1_000_000)
TIMEOUT_SECONDS = 5.0
GROUPS = GroupPolicy(
    GroupSettings(30_000, 5), forget_ms=300_000, dead_letter_retention_ms=DAY_MS, max_dead_letters=1_000
)


@dataclass(frozen=True)
class LogParts:
    """What writes to one Redis, and a plain client to look with."""

    keys: Keys
    appends: AppendLog
    produce: Produce
    seals: SealLog
    streams: StreamLog
    open_streams: OpenStreams
    groups: GroupLog
    group_states: GroupStates
    letters: DeadLetterLog
    client: "redis.asyncio.Redis"
    retention_ms: int

    async def store(self, name: StreamName, step: Step) -> None:
        """Store something that the rules allow."""
        match step:
            case Create():
                await self.streams.create(name, None, None, self.retention_ms)
            case Append():
                assert isinstance(await self.appends.append(name, step), Appended)
            case Seal():
                assert (await self.seal(name, step))[0]

    async def append_tokens(
        self, name: StreamName, *sizes: int, first: int = 1, finish: FinishReason | None = None
    ) -> None:
        """Store an entry with so many tokens for each of `sizes`; the last with a completion if `finish` is given."""
        for i, tokens in enumerate(sizes):
            reason = finish if i == len(sizes) - 1 else None
            await self.store(name, Append(first, tokens, reason, Producer(0, "p"), b"x" * 10 * tokens))
            first += tokens

    def place(self, name: StreamName, group: str) -> GroupPlace:
        """Say where a stream's group is."""
        return GroupPlaces(self.keys).of_stream(name, group)

    async def append(self, name: StreamName, request: Append) -> Outcome:
        """Call the script once."""
        return await outcome_of(self.appends, name, request)

    async def produce_outcome(self, name: StreamName, request: Append) -> Outcome:
        """Store a request as the RPC does."""
        return await outcome_of(self.produce, name, request)

    async def produce_all(self, asked: Sequence[tuple[StreamName, Append]]) -> list[Outcome]:
        """Store a group of requests as ProduceMany does."""
        items = [(self.keys.stream(name), request) for name, request in asked]
        return [as_model(done) for done in await self.produce.append_all(items, source=self)]

    async def seal(self, name: StreamName, seal: Seal) -> tuple[bool, int, FinishReason, Sealer]:
        """Seal; tells whether it was now, the completion's number, and how."""
        made = await self.seals.seal(name, seal.sealer, seal.finish_reason, seal.fragment)
        assert made is not None
        return made.sealed_now, made.cursor.sequence, made.finish_reason, made.sealer

    async def entries(self, name: StreamName) -> list[StoredEntry]:
        """Read what is stored."""
        found: Any = await self.client.xrange(self.keys.stream(name).log)
        return [_entry(entry_id, fields) for entry_id, fields in found]

    async def feed(self, partition: int) -> list[tuple[int, LifecycleEntry]]:
        """Read a partition's part of the lifecycle feed, with the events' numbers."""
        found: Any = await self.client.xrange(self.keys.feed(partition))
        return [
            (number_of(entry_id), LifecycleEntry.parse(entry_id, list(chain(*fields.items()))))
            for entry_id, fields in found
        ]

    async def forget_scripts(self) -> None:
        await self.client.script_flush()


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> StoredEntry:
    sealer, finish = fields.get(b"s"), fields.get(b"f")
    _, cursor_checksum, _, _, checksum, *producer = fields[b"i"].split(b" ", 6)
    entry = StoredEntry(
        last=int(entry_id.partition(b"-")[2]),
        records=int(fields[b"n"]),
        fragment=fields[b"b"],
        producer=Producer(int(producer[0]), producer[1].decode()) if producer else None,
        sealer=Sealer(sealer.decode()) if sealer else None,
        finish_reason=FinishReason(finish.decode()) if finish else None,
        cursor_checksum=cursor_checksum.decode(),
    )
    assert entry.checksum == checksum.decode()
    return entry


async def outcome_of(log: AppendLog | Produce, name: StreamName, request: Append) -> Outcome:
    """Append, and put what comes of it, answer or error, as the model does."""
    try:
        return as_model(await log.append(name, request))
    except AppendRefused as error:
        return as_model(error)


def as_model(done: Appended | Overlap | Exception) -> Outcome:
    """Put what came of an append as the model does. Raises what is no decision."""
    match done:
        case SequenceGap():
            return Outcome(Decision.GAP, (int(done.metadata["expected"]),))
        case Fenced():
            return Outcome(Decision.FENCED, (int(done.metadata["epoch"]),))
        case SequenceConflict():
            return Outcome(Decision.CONFLICT, (int(done.metadata["sequence"]),))
        case Completed():
            finish = FinishReason[done.metadata["finish_reason"].removeprefix("FINISH_REASON_")]
            return Outcome(Decision.COMPLETED, (finish, Sealer[done.metadata["sealer"].removeprefix("SEALER_")]))
        case Overlap():
            return Outcome(Decision.OVERLAP, (done.last,))
        case Appended():
            decision = Decision.DUPLICATE if done.duplicate else Decision.APPEND
            assert done.last_sequence == done.cursor.sequence
            return Outcome(decision, (done.last_sequence,), done.cursor.checksum)
    raise done


@asynccontextmanager
async def log_parts(
    url: str, prefix: str, defaults: LogDefaults = NO_LIMITS, **settings: Any
) -> AsyncIterator[LogParts]:
    """Run the parts while the context lasts."""
    keys = Keys(prefix, settings.get("partitions", 4))
    servers = Servers(url, settings.get("timeout_seconds", TIMEOUT_SECONDS), settings.get("acks", NO_REPLICA_ACKS))
    appends = AppendLog(servers, keys, defaults)
    commands = Commands(servers)
    runs = [asyncio.create_task(part.run()) for part in (appends, commands)]
    try:
        async with redis.asyncio.Redis.from_url(url) as client:
            yield LogParts(
                keys,
                appends,
                Produce(appends, WIRE),
                SealLog(commands, keys, defaults),
                StreamLog(commands, keys),
                OpenStreams(commands, keys),
                GroupLog(commands, settings.get("groups", GROUPS)),
                GroupStates(commands, GROUPS.default),
                DeadLetterLog(commands, keys, GROUPS.default.ack_deadline_ms),
                client,
                defaults.retention_ms,
            )
    finally:
        for run in runs:
            run.cancel()
        ended = await asyncio.gather(*runs, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
