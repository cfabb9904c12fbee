"""Calls of scripts that store something: together in one round trip, and not before enough replicas have it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import NoScriptError, ResponseError

from llmbridge.errors import AppendOutcomeUnknown, RedisUnavailable
from llmbridge.log.exchange import Command, ConnectionBroken, Reply
from llmbridge.log.lanes import Redirect, Unit, Wire
from llmbridge.log.scripts import Scripts, Wake, error_of
from llmbridge.log.servers import Servers

logger = logging.getLogger(__name__)

Outcome = Reply | Exception
"""A script's answer; or Redirect, RedisUnavailable, AppendOutcomeUnknown or ResponseError."""


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A script with its keys, all of one slot, and its arguments."""

    scripts: Scripts
    keys: Sequence[str]
    arguments: Sequence[str | bytes | int]

    def by_digest(self, wake: Wake) -> Unit:
        """Build the call."""
        return (self.scripts[wake].command(self.keys, self.arguments),)

    def with_source(self, wake: Wake) -> Unit:
        """Build the call that also makes Redis remember the script."""
        return (self.scripts[wake].command_with_source(self.keys, self.arguments),)


class Storing:
    """Runs scripts that store something."""

    def __init__(self, servers: Servers) -> None:
        self._acks = servers.acks
        self._publish = servers.wake.value.upper()
        self._wake = Wake.AFTER if self._acks.replicas else servers.wake

    async def run(self, wire: Wire, calls: Sequence[ScriptCall]) -> list[Outcome]:
        """Run each script once and give what came of it. Raises RedisUnavailable or ConnectionBroken for all.

        With replica acks: an answer is given only when so many replicas have what it says; then readers are woken.
        """
        answers, replicas = await self._send(wire, [call.by_digest(self._wake) for call in calls])
        missing = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:
            again, also = await self._send(wire, [calls[i].with_source(self._wake) for i in missing])
            # The second may have gone to another primary: each vouches for its own.
            replicas = min(replicas, also)
            for i, answer in zip(missing, again, strict=True):
                answers[i] = answer
        outcomes = [error_of(answer) if isinstance(answer, ResponseError) else answer for answer in answers]
        return await self._settled(wire, outcomes, replicas) if self._acks.replicas else outcomes

    async def _send(self, wire: Wire, units: list[Unit]) -> tuple[list[Outcome], int]:
        """Send scripts, and WAIT right behind them: it concerns what was written before on the same connection.

        Gives the scripts' answers and how many replicas have what they wrote.
        """
        if self._acks.replicas:
            units.append((("WAIT", self._acks.replicas, self._acks.timeout_ms),))
        answers = [answer if isinstance(answer, Redirect) else answer[0] for answer in await wire.send(units)]
        replicas = answers.pop() if self._acks.replicas else 0
        return answers, replicas if isinstance(replicas, int) else 0

    async def _settled(self, wire: Wire, outcomes: Sequence[Outcome], replicas: int) -> list[Outcome]:
        settled: list[Outcome] = []
        wake_ups: list[Unit] = []
        enough = replicas >= self._acks.replicas
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                settled.append(outcome)
            elif enough:
                answer, messages = outcome
                settled.append(answer)
                wake_ups += [(self._wake_up(*pair),) for pair in zip(messages[::2], messages[1::2], strict=True)]
            else:
                settled.append(
                    AppendOutcomeUnknown(f"{replicas} replicas have the write yet, and {self._acks.replicas} must")
                )
        if wake_ups:
            try:
                await wire.send(wake_ups)
            except (RedisUnavailable, ConnectionBroken) as error:
                logger.debug("wake-ups were lost, readers poll: %s", error)
        return settled

    def _wake_up(self, channel: bytes, message: bytes) -> Command:
        return self._publish, channel, message
