"""Many subscriptions of one call against a model: each record once, in order, to each, whatever comes and goes."""

import asyncio
import gc
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from llmbridge.hub.connections import Caller, Connections, Transport
from llmbridge.hub.fanout import Fanout
from llmbridge.log.reading import LogReader, Page, Tip
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.rpc.deliveries import ProtoDeliveries
from llmbridge.subscribe import loader as loader_module
from llmbridge.subscribe.cohort import Subscription
from llmbridge.subscribe.multiplexer import Begin, Change, Multiplexer
from llmbridge.subscribe.place import Place
from llmbridge.subscribe.start import Position, Start
from llmbridge.v1.bridge_service_pb2 import SubscribeManyResponse
from tests.support.fake_hub import INCARNATION, WIRE, FakeHub
from tests.support.many_calls import Subscribed

LOGS = ("a", "b", "c")


@dataclass
class Expected:
    """What a subscription is to get: all records of its log after the first `skipped`."""

    log: str
    skipped: int
    got: Subscribed
    credit: int
    dropped: bool = False


class Call:
    """A call whose responses are taken when the test says so."""

    def __init__(self, hub: FakeHub, heartbeat_seconds: float = 1_000) -> None:
        self.hub = hub
        self.connections = Connections(1_000_000, 1_000_000, 1_000, None)
        self.multiplexer = Multiplexer(
            self.connections, self._place, ProtoDeliveries(), Caller(Transport.GRPC, "peer"), heartbeat_seconds
        )
        self.expected: dict[int, Expected] = {}
        self.deliveries = 0
        self._asking: asyncio.Task[bytes | None] | None = None

    def _place(self, name: StreamName) -> Place:
        return Place(name.response_id, cast("Fanout", self.hub), cast("LogReader", self.hub), WIRE)

    def start(self, *logs: str, start: Start = Position.BEGINNING, credit: int = 0) -> list[Expected]:
        begun = []
        for log in logs:
            runs = self.hub.logs.get(log, [])
            skipped = 0
            if isinstance(start, Cursor):
                skipped = start.sequence
            elif start is Position.LATEST and runs:
                skipped = runs[-1].last - runs[-1].sealed
            number = len(self.expected) + 1
            got = Subscribed(last=skipped, cursor=str(start) if isinstance(start, Cursor) else "")
            self.expected[number] = Expected(log, skipped, got, credit)
            begun.append(Begin(number, StreamName("s", "m", log), start, credit))
        self.multiplexer.apply(Change((), begun, ()))
        return [self.expected[begin.number] for begin in begun]

    def drop(self, number: int) -> None:
        self.expected[number].dropped = True
        self.multiplexer.apply(Change((number,), (), ()))

    def credit(self, number: int, size: int) -> None:
        if self.expected[number].credit:
            self.expected[number].credit += size
        self.multiplexer.apply(Change((), (), ((number, size),)))

    async def turn(self, times: int = 1) -> None:
        """Let things happen, and take a response if there is one."""
        for _ in range(times):
            await asyncio.sleep(0)
            if self._asking is None:
                self._asking = asyncio.create_task(self.multiplexer.next_message())
            elif self._asking.done():
                response = SubscribeManyResponse.FromString(self._asking.result() or b"")
                self._asking = None
                for delivery in response.deliveries:
                    self.deliveries += 1
                    for number in delivery.subscriptions:
                        self._deliver(self.expected[number], delivery)

    def _deliver(self, expected: Expected, delivery) -> None:  # type: ignore[no-untyped-def]
        got = expected.got
        if delivery.HasField("message") and expected.credit:
            assert got.bytes < expected.credit, "without credit"
        got.deliver(delivery)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self.multiplexer.detach()
        assert len(self.connections) == 0
        assert not self.hub.tails
        assert not self.multiplexer._cohorts._running
        assert self.multiplexer._loader._reading._free == loader_module.PAGES_AT_ONCE
        assert self.multiplexer._loader._attaching._free == loader_module.ATTACHING_AT_ONCE


def text_of(hub: FakeHub, log: str, skipped: int) -> list[str]:
    return [f"{log}{i}" for i in range(1, hub.logs[log][-1].last)][skipped:]


def append(hub: FakeHub, log: str, count: int, *, sealed: bool = False, tell: bool = True) -> None:
    runs = hub.logs.get(log)
    if runs and runs[-1].sealed:
        return
    last = runs[-1].last if runs else 0
    hub.append(log, *(f"{log}{last + i}" for i in range(1, count + 1)), sealed=sealed, tell=tell)


log = st.sampled_from(LOGS)
which = st.integers(0, 30)
step = st.one_of(
    st.tuples(st.just("append"), log, st.integers(1, 3), st.booleans()),
    st.tuples(st.just("append"), log, st.integers(1, 3), st.just(True)),
    st.tuples(st.just("seal"), log),
    st.tuples(st.just("start"), st.lists(log, min_size=1, max_size=4), st.sampled_from(Position), st.integers(0, 80)),
    st.tuples(st.just("resume"), log, which, st.integers(0, 80)),
    st.tuples(st.just("drop"), which),
    st.tuples(st.just("credit"), which, st.integers(1, 120)),
    st.tuples(st.just("turn"), st.integers(1, 12)),
    st.tuples(st.just("look"), log),
    st.tuples(st.just("close"), log),
    st.tuples(st.just("fail"), st.integers(1, 3)),
)


@settings(max_examples=300)
@given(st.lists(step, max_size=60))
def test_each_gets_its_records_once_and_in_order(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    asyncio.run(_play(steps))


async def _play(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    hub = FakeHub()
    call = Call(hub)
    for name, *given_ in steps:
        match name, given_:
            case "append", [log_, count, tell]:
                append(hub, log_, count, tell=tell)
            case "seal", [log_]:
                append(hub, log_, 0, sealed=True)
            case "start", [logs, position, credit]:
                # What "latest" means must not change while it is found out.
                call.start(*logs, start=position, credit=credit)
                failures, hub.failures = hub.failures, 0
                await call.turn(12)
                hub.failures = failures
            case "resume", [log_, place, credit]:
                runs = hub.logs.get(log_)
                if runs:
                    run = runs[place % len(runs)]
                    call.start(log_, start=Cursor(INCARNATION, run.last, run.checksum), credit=credit)
                    failures, hub.failures = hub.failures, 0
                    await call.turn(12)
                    hub.failures = failures
            case "drop", [number] if number in call.expected:
                call.drop(number)
            case "credit", [number, size] if number in call.expected:
                call.credit(number, size)
            case "turn", [times]:
                await call.turn(times)
            case "look", [log_]:
                hub.look(log_)
            case "close", [log_]:
                hub.close(log_)
            case "fail", [times]:
                hub.failures += times
    # Everything is appended, seen and credited in the end.
    hub.failures = 0
    for log_ in LOGS:
        append(hub, log_, 1, sealed=True)
        hub.look(log_)
    for number in call.expected:
        call.credit(number, 1 << 40)
    async with asyncio.timeout(20):
        while not all(expected.got.over for expected in call.expected.values()):
            await call.turn()
            # Pauses after failures are short, but they are pauses.
            await asyncio.sleep(0.001 if call.multiplexer._change is not None else 0)
    for expected in call.expected.values():
        wanted = text_of(hub, expected.log, expected.skipped)
        got = expected.got
        if expected.dropped and got.completion is None:
            assert got.ended is not None
            assert got.ended.code == 0
            assert got.texts == wanted[: len(got.texts)]
        else:
            assert got.ended is None or (got.ended.code == 0 and got.texts == wanted == [])
            assert got.texts == wanted
    event(f"subscriptions: {min(len(call.expected), 10)}")
    await call.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "LONGEST_PAUSE_SECONDS", 0.002)


async def test_those_at_one_place_are_one() -> None:
    hub = FakeHub()
    call = Call(hub)
    for _ in range(3):
        call.start(*["a"] * 20)
        await call.turn(5)
    hub.append("a", "a1")
    await call.turn(5)
    before = call.deliveries
    hub.append("a", "a2")
    await call.turn(5)
    assert call.deliveries == before + 1
    assert {tuple(expected.got.texts) for expected in call.expected.values()} == {("a1", "a2")}
    assert len(hub.tails["a"].listeners) == 1
    await call.close()


async def test_who_is_held_joins_nobody() -> None:
    """Not even those that stand at the same place, while a third is elsewhere."""
    hub, after = FakeHub(), FakeHub.after
    call = Call(hub)

    async def slow_from_the_beginning(log: str, cursor: Cursor, tip: Tip | None) -> Page:
        if cursor.sequence == 0:
            await asyncio.Event().wait()
        return await after(hub, log, cursor, tip)

    hub.after = slow_from_the_beginning  # type: ignore[method-assign]
    [free], [held] = call.start("a"), call.start("a", credit=1)
    await call.turn(10)
    hub.append("a", "a1")
    await call.turn(10)
    for i in (2, 3):
        hub.append("a", f"a{i}")
        await call.turn(10)
    hub.look("a")
    [stuck] = call.start("a")
    await call.turn(10)
    assert (free.got.last, held.got.last, stuck.got.attached) == (3, 1, True)
    # Just enough for what there is, so that it is held again where the first one stands.
    call.credit(2, held.got.bytes)
    await call.turn(20)
    assert held.got.last == 3
    hub.append("a", "a4")
    await call.turn(10)
    assert (free.got.last, held.got.last) == (4, 3)
    call.credit(2, 1_000)
    await call.turn(10)
    assert (held.got.texts, stuck.got.texts) == (["a1", "a2", "a3", "a4"], [])
    await call.close()


async def test_a_heartbeat_is_activity_of_all() -> None:
    call = Call(FakeHub(), heartbeat_seconds=0)
    call.start("a")
    call.multiplexer.beat()
    [connection] = call.connections.after(0)
    began = connection._attendee.last_taken_at
    async with asyncio.timeout(5):
        while connection._attendee.last_taken_at == began:
            await call.turn()
            call.multiplexer.beat()
    await call.close()


async def test_replays_from_one_place_are_read_once() -> None:
    hub = FakeHub()
    for i in range(1, 31):
        hub.append("a", f"a{i}")
    reads = 0
    after = hub.after

    async def counted(*asked):  # type: ignore[no-untyped-def]
        nonlocal reads
        reads += 1
        return await after(*asked)

    hub.after = counted  # type: ignore[method-assign]
    call = Call(hub)
    call.start(*["a"] * 50)
    await call.turn(100)
    assert all(len(expected.got.texts) == 30 for expected in call.expected.values())
    assert reads <= 11
    await call.close()


def alive(call: Call) -> int:
    gc.collect()
    # By its type, since what other tests left may answer `isinstance` with an error.
    found = [one for one in gc.get_objects() if type(one) is Subscription and one._call is call.multiplexer]
    return len(found)


async def test_nothing_is_kept_of_those_that_are_over() -> None:
    hub = FakeHub()
    call = Call(hub)
    call.start("a", "a", "b", credit=1)
    await call.turn(10)
    hub.append("a", "a1")
    await call.turn(10)
    assert alive(call) == 3
    call.multiplexer.apply(Change((1, 2, 3), (), ()))
    await call.turn(5)
    assert alive(call) == 0
    assert not hub.tails
    assert not call.multiplexer._subscriptions
    await call.close()


async def test_pages_ahead_of_the_client_are_bounded() -> None:
    hub = FakeHub()
    logs = [f"log {i}" for i in range(40)]
    for name in logs:
        for i in range(10):
            hub.append(name, f"{i}")
    call = Call(hub)
    call.multiplexer.apply(
        Change((), [Begin(i, StreamName("s", "m", name), Position.BEGINNING, 0) for i, name in enumerate(logs)], ())
    )
    for _ in range(100):
        await asyncio.sleep(0)
        while call.multiplexer._events:
            call.multiplexer._events.popleft()
        if call.multiplexer._ready and not any(cohort.from_log for cohort in call.multiplexer._ready):
            for cohort in list(call.multiplexer._ready):
                call.multiplexer._ready.remove(cohort)
                cohort.queued = False
                call.multiplexer._look(cohort)
    assert sum(cohort.from_log for cohort in call.multiplexer._ready) == loader_module.PAGES_AT_ONCE
    await call.close()
