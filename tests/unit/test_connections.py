"""The registry of connections with calls that are played: states, limits, and ends that come at any moment."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from llmbridge.errors import ConnectionIdle, ConnectionNotFound, Disconnected, Draining, LimitExceeded
from llmbridge.hub.attached import HELD_AFTER_SECONDS, Attached, State
from llmbridge.hub.connections import Attachment, Caller, Connection, Connections, Transport
from llmbridge.model.names import StreamName

CALLER = Caller(Transport.GRPC, "peer")
READER = Attachment(StreamName("s", "m", "r"), CALLER)
MEMBER = Attachment(StreamName("s", "m", "r"), CALLER, "g", "c")
WATCHER = Attachment(None, CALLER, "g", "c")


class Call(Attached):
    """Gives what it is told to; may be long in reading, and in letting go."""

    def __init__(self, heartbeat_seconds: float = 1_000) -> None:
        super().__init__(heartbeat_seconds)
        self.messages: list[bytes] = []
        self.reading = asyncio.Event()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.may_detach = asyncio.Event()
        self.may_detach.set()
        self.detached = 0
        self.behind = 0

    @property
    def cursor(self) -> str:
        return "here"

    @property
    def lag(self) -> int:
        return self.behind

    async def detach(self) -> None:
        await self.may_detach.wait()
        self.detached += 1

    async def _advance(self) -> bytes | None:
        self.reading.set()
        await self.may_read.wait()
        if self.messages:
            return self.messages.pop(0)
        await self._wait()
        return None

    def _heartbeat(self) -> bytes:
        return b"beat"


def registry(
    heartbeat_ms: int = 1_000_000, cleanup_ms: int = 1_000_000, max_readers: int = 10, max_members: int | None = None
) -> Connections:
    return Connections(heartbeat_ms, cleanup_ms, max_readers, max_members)


def the_one(connections: Connections) -> Connection:
    [connection] = connections.after(0)
    return connection


@asynccontextmanager
async def serving(
    connections: Connections, call: Call, attachment: Attachment = READER
) -> AsyncIterator["asyncio.Task[None]"]:
    """A handler that hands over whatever comes, to a client that takes all of it."""

    async def serve() -> None:
        async with connections.attach(call, attachment):
            while await call.next_message() is not None:
                pass

    task = asyncio.create_task(serve())
    await until(lambda: call.reading.is_set())
    try:
        yield task
    finally:
        call.may_detach.set()
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def ended(task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(5):
        await task


class Clock:
    """What a call needs of its event loop, at a time of our choice."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


async def test_states_and_activity(monkeypatch: pytest.MonkeyPatch) -> None:
    connections, call = registry(), Call()
    clock = Clock(call.last_taken_at)
    monkeypatch.setattr(call, "_loop", clock)

    def now() -> tuple[State, float]:
        """What it does, and how many seconds after it was attached its client last took something."""
        connection = the_one(connections)
        return connection.state, round((connection.last_activity_ms - connection.since_ms) / 1_000, 2)

    async with connections.attach(call, READER):
        assert now() == (State.ATTACHING, 0)
        clock.now += 2
        call.may_read.clear()
        asking = asyncio.create_task(call.next_message())
        await call.reading.wait()
        assert now() == (State.CATCHING_UP, 0)
        call.messages.append(b"a")
        call.may_read.set()
        assert await asking == b"a"
        # Being written, which takes a moment: to a reader that has everything, and to one that has not.
        assert now() == (State.LIVE, 0)
        call.behind = 3
        assert now() == (State.CATCHING_UP, 0)
        assert the_one(connections).lag == 3
        # Not to the very limit: sums of fractions may fall short of it.
        clock.now += 2 * HELD_AFTER_SECONDS
        assert now() == (State.HELD, 0)
        clock.now += 5 - 2 * HELD_AFTER_SECONDS
        asking = asyncio.create_task(call.next_message())
        await until(lambda: call._change is not None)
        assert now() == (State.LIVE, 7)
        clock.now += 5
        assert now() == (State.LIVE, 7)
        asking.cancel()
        await asyncio.wait([asking])


async def test_disconnect_lets_go_before_it_returns() -> None:
    connections, call = registry(), Call()
    async with serving(connections, call) as task:
        call.may_detach.clear()
        connection_id = the_one(connections).id
        disconnecting = asyncio.create_task(connections.disconnect(connection_id))
        too = asyncio.create_task(connections.disconnect(connection_id))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (disconnecting.done(), too.done(), task.done(), len(connections)) == (False, False, False, 1)
        call.may_detach.set()
        await asyncio.gather(disconnecting, too)
        assert (call.detached, len(connections)) == (1, 0)
        with pytest.raises(Disconnected) as told:
            await ended(task)
        assert told.value.metadata == {"cursor": "here"}
        with pytest.raises(ConnectionNotFound):
            await connections.disconnect(connection_id)


@pytest.mark.parametrize("reading", [True, False])
async def test_disconnect_comes_through_whatever_is_awaited(reading: bool) -> None:
    connections, call, stuck = registry(), Call(), asyncio.Event()

    async def serve() -> None:
        async with connections.attach(call, READER):
            if reading:
                call.may_read.clear()
                await call.next_message()
            stuck.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await (call.reading if reading else stuck).wait()
    async with asyncio.timeout(5):
        await connections.disconnect(the_one(connections).id)
    with pytest.raises(Disconnected):
        await ended(task)
    assert call.detached == 1
    # The task goes on as one that nobody cancelled: it has its client to tell.
    assert task.cancelling() == 0


async def test_letting_go_is_not_disturbed() -> None:
    connections, call = registry(cleanup_ms=0), Call()
    async with serving(connections, call) as task:
        connection = the_one(connections)
        call.may_detach.clear()
        call._ended = True
        call.poke()
        await until(lambda: call._scope is None)
        connection.end(ConnectionIdle)
        connection.tick(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        call.may_detach.set()
        await ended(task)
        assert call.detached == 1


async def test_a_client_that_leaves_at_that_moment_is_gone() -> None:
    connections, call = registry(), Call()
    async with serving(connections, call) as task:
        the_one(connections).end(ConnectionIdle)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
        assert (call.detached, len(connections)) == (1, 0)


async def test_a_timeout_of_the_calls_own_is_left_as_it_is() -> None:
    connections = registry()
    with pytest.raises(TimeoutError, match="its own"):
        async with connections.attach(Call(), READER):
            raise TimeoutError("its own")
    assert len(connections) == 0


async def test_limits_of_readers_and_of_those_who_share() -> None:
    connections = registry(max_readers=1, max_members=2)
    async with (
        connections.attach(Call(), MEMBER),
        connections.attach(Call(), READER),
        connections.attach(Call(), WATCHER),
    ):
        for attachment, limit, maximum in (
            (READER, "max_readers", "1"),
            (MEMBER, "max_consumers_per_instance", "2"),
            (WATCHER, "max_consumers_per_instance", "2"),
        ):
            refused = Call()
            with pytest.raises(LimitExceeded) as told:
                await connections.attach(refused, attachment).__aenter__()
            assert told.value.metadata == {"limit": limit, "maximum": maximum, "value": str(int(maximum) + 1)}
            assert refused.detached == 0
        totals = connections.totals()
        assert (totals.connections, totals.members, totals.per_session) == (3, 2, {"s": 2})
    totals = connections.totals()
    assert (totals.connections, totals.members, totals.per_session) == (0, 0, {})
    async with registry().attach(Call(), MEMBER):
        pass


async def test_a_drain_ends_all_and_admits_nobody() -> None:
    connections, calls = registry(), [Call(), Call()]
    async with serving(connections, calls[0]) as one, serving(connections, calls[1], WATCHER) as other:
        connections.drain()
        for task in (one, other):
            with pytest.raises(Draining) as told:
                await ended(task)
            assert told.value.cursor == "here"
        with pytest.raises(Draining) as told:
            await connections.attach(Call(), READER).__aenter__()
        assert told.value.cursor is None
        assert len(connections) == 0


async def test_run_beats_and_lets_go_of_who_takes_nothing() -> None:
    connections, quiet, held = registry(heartbeat_ms=40, cleanup_ms=60), Call(0.04), Call(0.04)
    running = asyncio.create_task(connections.run())
    taken: list[bytes | None] = []

    async def take() -> None:
        async with connections.attach(quiet, READER):
            while True:
                taken.append(await quiet.next_message())

    async def hold() -> None:
        async with connections.attach(held, READER):
            await held.next_message()
            await asyncio.Event().wait()

    taking, holding = asyncio.create_task(take()), asyncio.create_task(hold())
    with pytest.raises(ConnectionIdle):
        await ended(holding)
    await until(lambda: len(taken) > 3)
    assert set(taken) == {b"beat"}
    assert not taking.done()
    for task in (taking, running):
        task.cancel()
    await asyncio.wait([taking, running])
