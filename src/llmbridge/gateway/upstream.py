"""Asks the configured OpenAI-compatible server and pipes its answer into a writer.

The only module that knows the `openai` package, an extra; knows nothing of HTTP requests to the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

from llmbridge.client import ClientError, Completion, Writer
from llmbridge.client.adapters import pipe
from llmbridge.client.adapters.failures import explain

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Question", "Upstream", "UpstreamError", "UpstreamNotInstalled", "check_installed"]

LIST_SECONDS = 10.0
"""How long the upstream may take to list its models."""

_NO_SUCH_PAGE = (404, 405, 501)


class UpstreamError(Exception):
    """The upstream failed; the message is one line for people, without secrets."""


class UpstreamNotInstalled(Exception):
    """An upstream is configured, but the package for asking it is not there."""

    def __init__(self) -> None:
        super().__init__("LLMBRIDGE_UPSTREAM_URL needs the package 'openai'; run: pip install 'llmbridge[openai]'")


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, as OpenAI's chat completions have it."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the model server is to be told: `temperature`, `tools` and so on."""

    @classmethod
    def of_prompt(cls, model: str, prompt: str) -> Self:
        """Make a question without any conversation before it."""
        return cls(model, [{"role": "user", "content": prompt}])


def check_installed() -> None:
    """Raises UpstreamNotInstalled where the package is not there; loads it, which takes half a second."""
    try:
        import openai  # noqa: F401
    except ImportError:
        raise UpstreamNotInstalled from None


class Upstream:
    """The upstream, with connections that are kept. Belongs to one event loop; `close` it."""

    def __init__(self, url: str, key: str) -> None:
        """Raises UpstreamNotInstalled."""
        check_installed()
        from openai import AsyncOpenAI

        # Local servers take any key, but the package wants one.
        self._client: AsyncOpenAI = AsyncOpenAI(base_url=url, api_key=key or "none")

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def models(self) -> list[dict[str, Any]]:
        """Give its models as it describes them; none where it has no list. Raises UpstreamError."""
        from openai import APIStatusError

        try:
            page = await self._client.with_options(timeout=LIST_SECONDS, max_retries=0).models.list()
        except Exception as error:
            if isinstance(error, APIStatusError) and error.status_code in _NO_SUCH_PAGE:
                return []
            raise UpstreamError(explain(error)) from error
        return [model.to_dict() for model in page.data]

    async def pipe(self, question: Question, writer: Writer) -> Completion:
        """Write the answer to a question, and its completion, which is returned.

        Raises UpstreamError where the upstream failed, after a completion that says the same; and ClientError where the
        bridge does not take it.
        """
        chunks = self._client.chat.completions.create(
            model=question.model,
            # As the asker wrote them: what is right is for the model server to say.
            messages=cast("Any", list(question.messages)),
            stream=True,
            stream_options={"include_usage": True},
            extra_body=dict(question.parameters),
        )
        try:
            return await pipe(chunks, writer)
        except ClientError:
            raise
        except Exception as error:
            raise UpstreamError(explain(error)) from error
