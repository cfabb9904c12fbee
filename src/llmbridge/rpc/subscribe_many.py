"""BridgeService.SubscribeMany."""

import asyncio
from collections.abc import AsyncIterator

from llmbridge.errors import InvalidField, InvalidRequest
from llmbridge.rpc import limits as check
from llmbridge.rpc.caller import caller_of
from llmbridge.rpc.limits import Limits
from llmbridge.rpc.methods import Context, parsed_part
from llmbridge.rpc.subscribe import decode_start
from llmbridge.subscribe.multiplexer import Begin, Change, Multiplexer, Refused
from llmbridge.subscribe.subscriptions import Subscriptions
from llmbridge.v1.bridge_service_pb2 import SubscribeManyRequest, SubscriptionStart

MAX_STARTS = 4_096
"""In a message, which is taken in one go while nobody else is served: about 40 ms."""

MAX_OTHER_CHANGES = 65_536
"""Drops, and credits, in a message."""


class SubscribeManyMethod:
    """Decodes what the client changes, and writes what is ready as it is."""

    def __init__(self, subscriptions: Subscriptions, limits: Limits) -> None:
        self._subscriptions = subscriptions
        self._limits = limits

    async def __call__(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Serve one call. A write waits while the client's flow control holds it; meanwhile it is listened to."""
        async with self._subscriptions.share(caller_of(context)) as multiplexer:
            await context.send_initial_metadata(())
            listening = asyncio.create_task(self._listen(requests, multiplexer))
            try:
                while (response := await multiplexer.next_message()) is not None:
                    await context.write(response)
            finally:
                listening.cancel()
                await asyncio.wait([listening])

    async def _listen(self, requests: AsyncIterator[bytes], multiplexer: Multiplexer) -> None:
        try:
            async for raw in requests:
                multiplexer.apply(self._decode(parsed_part(SubscribeManyRequest, raw)))
                await multiplexer.room()
        except Exception as error:
            multiplexer.broke(error)
        else:
            multiplexer.close()

    def _decode(self, request: SubscribeManyRequest) -> Change:
        check.check_count("starts of a message", len(request.starts), MAX_STARTS)
        check.check_count("drops of a message", len(request.drops), MAX_OTHER_CHANGES)
        check.check_count("credits of a message", len(request.credits), MAX_OTHER_CHANGES)
        return Change(
            request.drops,
            [self._decode_start(start) for start in request.starts],
            [(credit.subscription, credit.bytes) for credit in request.credits],
        )

    def _decode_start(self, start: SubscriptionStart) -> Begin | Refused:
        try:
            name = check.stream_name(start.request.stream, self._limits)
            if start.request.HasField("group"):
                raise InvalidField("group", "groups are read by Subscribe, with a call for each member")
            return Begin(start.subscription, name, decode_start(start.request), start.credit_bytes)
        except InvalidRequest as error:
            return Refused(start.subscription, error)
