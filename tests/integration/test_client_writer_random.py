"""Random histories of one writer: what is stored is a beginning of what was written, and all of it when it says so.

Any request may meet a log that has lost its tail, was cancelled or taken over, and fail in any way before or after it
is stored.
"""

import asyncio
from dataclasses import dataclass, field

import grpc
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from llmbridge.client import (
    Client,
    ClientError,
    DataLost,
    FinishReason,
    ProducerFenced,
    RetryPolicy,
    StreamCompleted,
    Unavailable,
    Writer,
)
from llmbridge.v1.bridge_service_pb2 import ProduceRequest
from llmbridge.v1.token_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_ERROR, Token
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault
from tests.support.steady_loop import SteadyLoop
from tests.support.tasks import no_tasks_left

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.01, attempt_timeout=0.3)
OTHER = "the other producer's"


@dataclass(frozen=True)
class Request:
    """What happens to one request before it is served, and how it fails."""

    keep: int | None = None
    """The log goes back to so many records."""
    delay: float = 0.0
    cancelled: bool = False
    taken_over: bool = False
    fault: Fault | None = None


@dataclass(frozen=True)
class History:
    batches: list[list[str]]
    flushes: list[bool]
    requests: list[Request]
    keep_bytes: int
    max_unsent_tokens: int
    linger: float
    fails: bool
    """The block is left by an exception."""


@dataclass
class Outcome:
    """What the writer's caller was told."""

    written: list[str] = field(default_factory=list)
    error: Exception | None = None
    writer: Writer | None = None


faults = st.builds(
    Fault,
    reason=st.sampled_from(["", "REDIS_UNAVAILABLE", "APPEND_OUTCOME_UNKNOWN", "DRAINING"]),
    message=st.just("Stream removed"),
    code=st.sampled_from([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED]),
    retry_delay=st.none() | st.floats(0, 0.005),
    after_storing=st.booleans(),
    hang=st.integers(0, 30).map(lambda number: number == 0),
)


def requests(over: bool) -> st.SearchStrategy[Request]:
    rarely = st.integers(0, 12).map(lambda number: over and number == 0)
    return st.builds(
        Request,
        keep=st.none() | st.integers(0, 20),
        delay=st.just(0.0) | st.floats(0, 0.01),
        cancelled=rarely,
        taken_over=rarely,
        fault=st.none() | faults,
    )


def histories(*, over: bool, keep_bytes: st.SearchStrategy[int]) -> st.SearchStrategy[History]:
    return st.builds(
        History,
        batches=st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=5), max_size=12),
        flushes=st.lists(st.booleans(), min_size=12, max_size=12),
        requests=st.lists(requests(over), max_size=25),
        keep_bytes=keep_bytes,
        max_unsent_tokens=st.sampled_from([1, 4, 1_000]),
        linger=st.sampled_from([0.0, 0.0, 0.003]),
        fails=st.booleans(),
    )


class Script:
    """Carries out what a history says about each request."""

    def __init__(self, bridge: FakeBridge, history: History) -> None:
        self._bridge = bridge
        self._requests = iter(history.requests)

    async def before_produce(self) -> None:
        request = next(self._requests, Request())
        self._bridge.produce_faults.clear()
        if request.fault is not None:
            self._bridge.produce_faults.append(request.fault)
        await asyncio.sleep(request.delay)
        log = self._bridge.logs.get(KEY)
        # What an end or another producer stored is not lost here: it is then theirs to store it again.
        ours = log is not None and log.completion is None and OTHER not in log.text
        if request.keep is not None and ours:
            self._bridge.lose_tail(request.keep)
        log = self._bridge.logs.get(KEY)
        if log is not None and log.completion is None:
            if request.taken_over:
                self._take_over(log.last + 1)
            elif request.cancelled:
                self._bridge.seal(FINISH_REASON_CANCELLED)

    def _take_over(self, first_sequence: int) -> None:
        stream = self._bridge.produced[0].stream
        tokens = [Token(text=OTHER)]
        request = ProduceRequest(stream=stream, tokens=tokens, first_sequence=first_sequence, producer_epoch=9)
        refusal = self._bridge.logs.append(request)
        assert refusal is None or refusal.reason == "FENCED"


async def write(client: Client, bridge: FakeBridge, history: History, outcome: Outcome) -> None:
    async with client.write(
        *KEY,
        linger=history.linger,
        keep_bytes=history.keep_bytes,
        max_unsent_tokens=history.max_unsent_tokens,
        close_timeout=10,
    ) as writer:
        outcome.writer = writer
        for batch, flush in zip(history.batches, history.flushes, strict=False):
            await writer.write(*batch)
            outcome.written += batch
            if flush:
                await writer.flush()
                assert texts(bridge) == outcome.written
        if history.fails:
            raise ZeroDivisionError


def texts(bridge: FakeBridge) -> list[str]:
    log = bridge.logs.get(KEY)
    return [] if log is None else [token.text for token in log.tokens]


def check_requests(bridge: FakeBridge) -> None:
    """Requests with the same numbers are the same, except for the end that says why there is nothing else."""
    first: dict[int, bytes] = {}
    for request in bridge.produced:
        if not request.tokens and request.completion.finish_reason == FINISH_REASON_ERROR:
            continue
        encoded = request.SerializeToString(deterministic=True)
        assert first.setdefault(request.first_sequence, encoded) == encoded


async def run(history: History, *, must_succeed: bool) -> None:
    before = asyncio.all_tasks()
    outcome = Outcome()
    async with FakeBridge() as bridge, Client(bridge.address, retry=QUICK) as client:
        bridge.before_produce = Script(bridge, history).before_produce
        try:
            await write(client, bridge, history, outcome)
        except (ClientError, ZeroDivisionError) as raised:
            outcome.error = raised
        writer, error, stored = outcome.writer, outcome.error, texts(bridge)
        event(type(error).__name__)
        assert writer is not None
        check_requests(bridge)
        ours = [text for text in stored if text != OTHER]
        assert ours == outcome.written[: len(ours)]
        assert OTHER not in stored[: len(ours)]
        assert not isinstance(error, Unavailable)
        end = bridge.log.completion if KEY in bridge.logs else None
        succeeded = error is None or (isinstance(error, ZeroDivisionError) and not hasattr(error, "__notes__"))
        assert succeeded or not must_succeed
        if succeeded:
            assert writer.completed
            assert stored == outcome.written
            assert end is not None
            assert FinishReason.of(end) is (FinishReason.STOP if error is None else FinishReason.ERROR)
            assert writer.last_sequence == len(stored) + 1
        elif isinstance(error, DataLost):
            # Unless somebody else was quicker, by a cancel or a takeover.
            assert writer.completed or end is not None or OTHER in stored
        elif isinstance(error, StreamCompleted | ProducerFenced):
            assert not writer.completed
            assert end is not None if isinstance(error, StreamCompleted) else OTHER in stored
        else:
            assert isinstance(error, ZeroDivisionError)
        if writer.completed and writer.stopped.is_set():
            assert end is not None
            assert end.error_message.startswith("DATA_LOST: ")
    await no_tasks_left(before)


def check_all(strategy: st.SearchStrategy[History], *, must_succeed: bool) -> None:
    # One loop for all examples: grpc serves one loop of a thread at a time.
    with asyncio.Runner(loop_factory=SteadyLoop) as runner:

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(strategy)
        def check(history: History) -> None:
            runner.run(asyncio.wait_for(run(history, must_succeed=must_succeed), 30))

        check()


def test_what_is_kept_outlives_every_loss() -> None:
    check_all(histories(over=False, keep_bytes=st.just(4_194_304)), must_succeed=True)


def test_whatever_happens_nothing_is_stored_twice_or_out_of_order() -> None:
    check_all(histories(over=True, keep_bytes=st.sampled_from([0, 400, 1_000, 4_194_304])), must_succeed=False)
