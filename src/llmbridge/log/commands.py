"""Everything but appends: commands of many callers share round trips on one connection."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from llmbridge.errors import AppendOutcomeUnknown, RedisUnavailable
from llmbridge.log.batcher import Batcher
from llmbridge.log.exchange import Command, ConnectionBroken, Exchange, Reply
from llmbridge.log.scripts import Script, call_script, checked

COMMANDS_A_BATCH = 32
"""In one round trip; so at most so many pages of the log are in memory at once, whatever the number of readers."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """Keeps error replies, which are answers to one item's commands, from being raised as a failure of the batch."""

    replies: list[Reply]


class Commands:
    """Sends commands. `run` must be running."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._batcher: Batcher[Sequence[Command], _Answer] = Batcher(
            self._carry, max_items=COMMANDS_A_BATCH, size_of=lambda _: 0, max_bytes=1
        )

    async def run(self) -> None:
        """Carry commands until cancelled."""
        await self._batcher.run()

    async def read(self, *command: str | bytes | int) -> Reply:
        """Send a command that may be repeated without harm.

        Raises RedisUnavailable, or ResponseError where Redis finds the command at fault.
        """
        try:
            return checked(await self._send(command))
        except ConnectionBroken as error:
            raise RedisUnavailable(str(error)) from error

    async def call(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Reply:
        """Call a script that writes. Raises as `read`, and AppendOutcomeUnknown where it may have run or not."""
        try:
            return await call_script(self._send, script, keys, arguments)
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error

    async def ask(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Reply:
        """Call a script that only reads. Raises as `read`."""
        try:
            return await call_script(self._send, script, keys, arguments)
        except ConnectionBroken as error:
            raise RedisUnavailable(str(error)) from error

    async def transaction(self, *commands: Command) -> list[Reply]:
        """Carry out commands with nobody else's in between. Raises as `call`, for the first that failed.

        The others have been carried out all the same.
        """
        try:
            replies = (await self._batcher.submit((("MULTI",), *commands, ("EXEC",)))).replies
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error
        for reply in replies[1:-1]:
            # Redis queues no command that it refuses at once, as it does when it is full.
            checked(reply)
        return [checked(reply) for reply in checked(replies[-1])]

    async def _send(self, command: Command) -> Reply:
        return (await self._batcher.submit((command,))).replies[0]

    async def _carry(self, items: Sequence[Sequence[Command]]) -> Sequence[_Answer]:
        replies = iter(await self._exchange.send([command for commands in items for command in commands]))
        return [_Answer(list(islice(replies, len(commands)))) for commands in items]
