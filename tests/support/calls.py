"""Calls as a client in any language would make them, what came back, checked on the way, and how they failed."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from llmbridge.v1.bridge_service_pb2 import ProduceRequest, ProduceResponse, SubscribeRequest, SubscribeResponse
from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceStub
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, Completion, Token

STOP = Completion(finish_reason=FINISH_REASON_STOP)
PATIENCE_SECONDS = 15.0


def ref(response: str = "", session: str = "s", model: str = "m") -> StreamRef:
    return StreamRef(session_id=session, model_id=model, response_id=response)


def stub(channel: grpc.aio.Channel) -> Any:
    return BridgeServiceStub(channel)


async def produce(
    bridge: Any, stream: StreamRef, *texts: str, first: int = 0, completion: Completion | None = None, **fields: Any
) -> ProduceResponse:
    """One request with these texts as tokens; `bridge` is a BridgeServiceStub."""
    request = ProduceRequest(
        stream=stream,
        tokens=[Token(text=text) for text in texts],
        first_sequence=first,
        completion=completion,
        **fields,
    )
    response: ProduceResponse = await bridge.Produce(request, timeout=PATIENCE_SECONDS)
    return response


@dataclass
class Received:
    """What a reader holds. Fails at the first record that is out of order, comes twice or leaves a hole."""

    texts: list[str] = field(default_factory=list)
    last: int = 0
    cursor: str = ""
    completion: Completion | None = None
    messages: int = 0
    heartbeats: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def take(self, message: SubscribeResponse) -> None:
        assert self.completion is None, "a message after the end"
        if not message.tokens and not message.HasField("completion"):
            assert (message.first_sequence, message.appended_ms) == (0, 0)
            assert message.cursor == self.cursor
            self.heartbeats += 1
            return
        self.messages += 1
        assert message.first_sequence == self.last + 1
        assert message.cursor
        assert message.appended_ms > 0
        self.texts += [token.text for token in message.tokens]
        self.last += len(message.tokens)
        self.cursor = message.cursor
        if message.HasField("completion"):
            self.completion = message.completion
            self.last += 1

    async def read(self, call: Any, through: int | None = None) -> "Received":
        """Read until record `through` is here, or to the call's end; a call that ends early or hangs fails."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while through is None or self.last < through:
                message = await call.read()
                if message is grpc.aio.EOF:
                    assert through is None, f"the call ended at record {self.last}"
                    break
                self.take(message)
        return self

    async def beat(self, call: Any) -> None:
        """Read one message, which must be a heartbeat."""
        before = self.heartbeats
        async with asyncio.timeout(PATIENCE_SECONDS):
            self.take(await call.read())
        assert self.heartbeats == before + 1


async def attached(bridge: Any, request: SubscribeRequest) -> Any:
    """Subscribe and wait for the initial metadata, which comes as soon as the reader is attached."""
    call = bridge.Subscribe(request)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await call.initial_metadata()
    return call


async def read_all(bridge: Any, stream: StreamRef, **start: Any) -> Received:
    """Read a sealed stream from where `start` says."""
    return await Received().read(bridge.Subscribe(SubscribeRequest(stream=stream, **start)))


@dataclass(frozen=True)
class Failure:
    """How a call failed, with everything that its status says."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    retry_ms: int | None
    trailers: dict[str, str | bytes]

    @property
    def short(self) -> tuple[grpc.StatusCode, str, dict[str, str]]:
        return self.code, self.reason, self.metadata


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Decode an error's details, which every error of the bridge must carry."""
    trailers = dict(error.trailing_metadata() or ())
    raw = trailers.get("grpc-status-details-bin")
    assert isinstance(raw, bytes), f"no details: {error.code()} {error.details()}"
    status = Status.FromString(raw)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "llmbridge"
    assert info.reason.startswith("ERROR_REASON_")
    has_retry = any(detail.Unpack(retry) for detail in status.details[1:])
    return Failure(
        error.code(),
        status.message,
        info.reason.removeprefix("ERROR_REASON_"),
        dict(info.metadata),
        retry.retry_delay.ToMilliseconds() if has_retry else None,
        trailers,
    )


async def failure(call: Awaitable[Any]) -> Failure:
    """Await a call that must fail within the time that tests have."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            result = await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error)
    raise AssertionError(f"it succeeded: {result}")


async def until(condition: Any) -> None:
    """Wait for something inside a process that tells nobody when it happens."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def stalled_channel(address: str) -> grpc.aio.Channel:
    """A channel on which flow control holds the bridge after about 64 KiB that were not read."""
    options = [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65_536),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(address, options=options)
