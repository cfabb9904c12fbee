"""Everything but appends: commands of many callers share round trips on one connection to a server."""

import asyncio
from collections.abc import Sequence
from functools import partial

from llmbridge.errors import AppendOutcomeUnknown, RedisUnavailable
from llmbridge.log.batcher import Batcher
from llmbridge.log.calls import Outcome, ScriptCall, Storing
from llmbridge.log.exchange import Command, ConnectionBroken, Reply
from llmbridge.log.lanes import LaneKind, Lanes, Unit, Wire
from llmbridge.log.scripts import Scripts, call_script, checked
from llmbridge.log.servers import Servers

COMMANDS_A_BATCH = 32
"""In one round trip; so at most so many pages of the log are in memory at once, whatever the number of readers."""

KEY_AT = {"EVAL": 3, "EVALSHA": 3, "XINFO": 2}
"""Where commands have their first key, if not right behind their name."""


Answer = list[Reply]
"""To one item's commands. An error reply in it is an answer, too, and no failure of the batch."""


class Commands:
    """Sends commands. `run` must be running."""

    def __init__(self, servers: Servers) -> None:
        self._wake = servers.wake
        self._lanes: Lanes[Unit, Answer] = Lanes(servers, LaneKind("commands", _key_of, _batcher))
        self._storing = Storing(servers)
        # Whoever waits for replicas must not keep others waiting. Without replica acks nobody waits for them.
        self._stores: Lanes[ScriptCall, Answer] | None = (
            Lanes(servers, LaneKind("stores", lambda call: call.keys[0], self._storing_batcher))
            if servers.acks.replicas
            else None
        )

    async def run(self) -> None:
        """Carry commands until cancelled."""
        if self._stores is None:
            await self._lanes.run()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._lanes.run(), name="commands")
            tasks.create_task(self._stores.run(), name="stores")

    async def read(self, *command: str | bytes | int) -> Reply:
        """Send a command that may be repeated without harm.

        Raises RedisUnavailable, or ResponseError where Redis finds the command at fault.
        """
        try:
            return checked(await self._send(command))
        except ConnectionBroken as error:
            raise RedisUnavailable(str(error)) from error

    async def read_each(self, *command: str | bytes | int) -> dict[str, Reply | RedisUnavailable]:
        """Send a command that concerns no key to every server, by its address ('' for the only one).

        Raises RedisUnavailable where it is not known which servers there are, else gives it for each that has failed.
        """
        return {
            str(address or ""): answer if isinstance(answer, RedisUnavailable) else checked(answer[0])
            for address, answer in (await self._lanes.submit_to_each((command,))).items()
        }

    async def call(
        self,
        scripts: Scripts,
        keys: Sequence[str],
        arguments: Sequence[str | bytes | int],
        sees_all_keys: bool = True,
    ) -> Reply:
        """Call a script that writes. Raises as `read`, and AppendOutcomeUnknown where it may have run or not.

        `sees_all_keys` False: it looks at keys that it is not given, and takes what is not there for gone.
        """

        async def send(command: Command) -> Reply:
            return (await self._lanes.submit((command,), follow_ask=sees_all_keys))[0]

        try:
            return await call_script(send, scripts[self._wake], keys, arguments)
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error

    async def store(self, scripts: Scripts, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Reply:
        """Call a script whose answer promises something about a log. Raises as `call`.

        With replica acks the answer is given only when so many replicas have what it says; then readers are woken.
        """
        if self._stores is None:
            return await self.call(scripts, keys, arguments)
        try:
            return (await self._stores.submit(ScriptCall(scripts, keys, arguments)))[0]
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error

    async def ask(self, scripts: Scripts, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Reply:
        """Call a script that only reads. Raises as `read`."""
        try:
            return await call_script(self._send, scripts[self._wake], keys, arguments)
        except ConnectionBroken as error:
            raise RedisUnavailable(str(error)) from error

    async def transaction(self, *commands: Command) -> list[Reply]:
        """Carry out commands with nobody else's in between. Raises as `call`, for the first that failed.

        The others have been carried out all the same.
        """
        try:
            replies = await self._lanes.submit((("MULTI",), *commands, ("EXEC",)))
        except ConnectionBroken as error:
            raise AppendOutcomeUnknown(str(error)) from error
        for reply in replies[1:-1]:
            # Redis queues no command that it refuses at once, as it does when it is full.
            checked(reply)
        return [checked(reply) for reply in checked(replies[-1])]

    async def _send(self, command: Command) -> Reply:
        return (await self._lanes.submit((command,)))[0]

    def _storing_batcher(self, wire: Wire) -> Batcher[ScriptCall, Answer]:
        return Batcher(partial(self._carry_stores, wire), COMMANDS_A_BATCH, size_of=lambda _: 0, max_bytes=1)

    async def _carry_stores(self, wire: Wire, calls: Sequence[ScriptCall]) -> list[Answer | Exception]:
        outcomes: list[Outcome] = await self._storing.run(wire, calls)
        return [outcome if isinstance(outcome, Exception) else [outcome] for outcome in outcomes]


def _batcher(wire: Wire) -> Batcher[Unit, Answer]:
    return Batcher(wire.send, COMMANDS_A_BATCH, size_of=lambda _: 0, max_bytes=1)


def _key_of(unit: Unit) -> str | bytes:
    command = unit[1] if unit[0][0] == "MULTI" else unit[0]
    key = command[KEY_AT.get(str(command[0]), 1)]
    assert not isinstance(key, int), f"{command[0]!r} has its key elsewhere"
    return key
