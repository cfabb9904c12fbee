"""One bidirectional call from its first message to its status. Knows nothing of what is said on it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias, TypeVar

import grpc

from llmbridge.client.errors import BridgeFailure, ClientError, ProtocolViolation, Unavailable, error_from_rpc
from llmbridge.client.tasks import stop

_Response = TypeVar("_Response")

HowItEnded: TypeAlias = Callable[[], ClientError]
"""Makes an error of its own for each of those who shared the call: who gets one may note things on it."""

_log = logging.getLogger(__name__)


async def converse(
    call: "grpc.aio.StreamStreamCall[bytes, _Response]",
    says: Callable[[], Awaitable[bytes | None]],
    hears: Callable[[_Response], None],
    response_type: type[_Response],
) -> HowItEnded:
    """Carry a call until it is over, however that comes about, and tell how it ended.

    `says` waits for what is to be said next; None: that was all. Reading has this task for itself, since grpc gives up
    a call whose read is cancelled: whoever waits for something that is read must wait for it elsewhere. Raises
    CancelledError when this task is cancelled, which ends the call.
    """
    speaking = asyncio.create_task(_speak(call, says), name="speak")
    try:
        return await _listen(call, hears, response_type)
    finally:
        call.cancel()
        await stop(speaking)


async def _listen(
    call: "grpc.aio.StreamStreamCall[bytes, _Response]",
    hears: Callable[[_Response], None],
    response_type: type[_Response],
) -> HowItEnded:
    try:
        while isinstance(response := await call.read(), response_type):
            hears(response)
        if response is not grpc.aio.EOF:
            return partial(ProtocolViolation, "the bridge sent something that can't be read")
    except grpc.aio.AioRpcError as error:
        # No call has a deadline of its own: whoever ends one for its age (a proxy, say) is outlived like any outage.
        return partial(error_from_rpc, error, own_deadline=True)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return partial(Unavailable, "the call was given up")
    except Exception as defect:
        _log.exception("a shared call broke")
        return partial(BridgeFailure, f"the call broke by a defect: {type(defect).__name__}")
    return partial(Unavailable, "the bridge ended the call")


async def _speak(
    call: "grpc.aio.StreamStreamCall[bytes, _Response]", says: Callable[[], Awaitable[bytes | None]]
) -> None:
    try:
        while (message := await says()) is not None:
            await call.write(message)
        await call.done_writing()
    except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        # The call is over, by a status, a broken connection or its end; which, is read where its messages are.
        return
    except BaseException:
        call.cancel()
        raise
