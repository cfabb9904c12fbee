"""How Redis is doing."""

from llmbridge.errors import RedisUnavailable
from llmbridge.log.commands import Commands


class RedisWatch:
    """Asks Redis about itself."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def ping(self) -> dict[str, RedisUnavailable]:
        """Ask every server for a sign of life; tells, by address, what kept some from it.

        Raises RedisUnavailable where none has given one.
        """
        answers = await self._commands.read_each("PING")
        failures = {address: answer for address, answer in answers.items() if isinstance(answer, RedisUnavailable)}
        if len(failures) == len(answers):
            raise next(iter(failures.values()))
        return failures

    async def eviction_policies(self) -> set[str]:
        """Tell the servers' maxmemory-policy; without those that do not say."""
        try:
            answers = await self._commands.read_each("INFO", "memory")
        except RedisUnavailable:
            return set()
        found = [answer.decode() for answer in answers.values() if isinstance(answer, bytes)]
        lines = (line.partition(":") for info in found for line in info.splitlines())
        return {value for name, _, value in lines if name == "maxmemory_policy"}
