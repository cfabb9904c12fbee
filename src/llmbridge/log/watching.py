"""How Redis is doing."""

from llmbridge.errors import RedisUnavailable
from llmbridge.log.commands import Commands


class RedisWatch:
    """Asks Redis about itself."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def ping(self) -> None:
        """Ask for a sign of life. Raises RedisUnavailable."""
        await self._commands.read("PING")

    async def eviction_policy(self) -> str | None:
        """Tell Redis' maxmemory-policy; None where it does not say."""
        try:
            info = await self._commands.read("INFO", "memory")
        except RedisUnavailable:
            return None
        for line in info.decode().splitlines():
            name, _, value = line.partition(":")
            if name == "maxmemory_policy":
                return str(value)
        return None
