"""What readers get of a response that was piped, over the real bridge."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llmbridge.client import Client, Completion, FinishReason, Token

PATIENCE_SECONDS = 15.0
# Composed, combining, right to left, beyond the first plane, joined emoji, control characters, separators, a BOM.
ODD = 'é e\u0301 שלום 𝔘 👩‍👩‍👧‍👦 \x00\x1b\x7f \u2028\u2029\u0085 \ufeff \r\n\t\\" \U0010ffff'


@dataclass(frozen=True)
class Response:
    """A response that was read to its end."""

    tokens: Sequence[Token]
    completion: Completion

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def reasoning(self) -> str:
        return "".join(token.reasoning for token in self.tokens)

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """Id, name and arguments of each tool call, put together as readers have to."""
        found: dict[int, list[str]] = defaultdict(lambda: ["", "", ""])
        for token in self.tokens:
            if token.WhichOneof("content") == "tool_call":
                call = token.tool_call
                parts = found[call.index]
                found[call.index] = [parts[0] + call.id, parts[1] + call.name, parts[2] + call.arguments]
        assert list(found) == list(range(len(found))), "indexes are dense, in the order of their beginnings"
        return [(parts[0], parts[1], parts[2]) for parts in found.values()]

    @property
    def finish_reason(self) -> FinishReason:
        return FinishReason.of(self.completion)


async def read_response(client: Client, *stream: str) -> Response:
    async with asyncio.timeout(PATIENCE_SECONDS), client.subscribe(*stream) as subscription:
        messages = [message async for message in subscription]
    completion = messages[-1].completion
    assert completion is not None
    return Response([token for message in messages for token in message.tokens], completion)
