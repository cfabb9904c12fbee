"""Asks the configured OpenAI-compatible server and pipes its answer into a writer.

The only module that knows the `openai` package, an extra; knows nothing of HTTP requests to the gateway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

from llmbridge.client import FinishReason, Writer
from llmbridge.client.openai_tokens import openai_records
from llmbridge.v1.token_pb2 import Completion

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["Answered", "Question", "Upstream", "UpstreamError", "UpstreamNotInstalled", "check_installed"]

_ABOUT_KEYS = frozenset({401, 403})
_HTTP_CLIENTS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2"})
_MAX_CHARACTERS = 500


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


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that has been written, with its end."""

    tokens: int
    failed: bool
    """Whether that end says so."""


class Upstream:
    """The upstream, with connections that are kept. Belongs to one event loop; `close` it."""

    def __init__(self, url: str, key: str) -> None:
        """Raises UpstreamNotInstalled."""
        check_installed()
        from openai import AsyncOpenAI

        self._key = key
        # Local servers take any key, but the package wants one.
        self._client: AsyncOpenAI = AsyncOpenAI(base_url=url, api_key=key or "none")

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def pipe(self, question: Question, writer: Writer) -> Answered:
        """Write the answer to a question, and its completion.

        Raises UpstreamError, without a completion; and ClientError where the bridge does not take it.
        """
        tokens = 0
        finish_reason = FinishReason.ERROR
        with self._explaining():
            chunks = await self._client.chat.completions.create(
                model=question.model,
                # As the asker wrote them: what is right is for the model server to say.
                messages=cast("Any", list(question.messages)),
                stream=True,
                stream_options={"include_usage": True},
                extra_body=dict(question.parameters),
            )
            async with chunks:
                async for record in openai_records(chunks):
                    if isinstance(record, Completion):
                        finish_reason = FinishReason(record.finish_reason)
                        await writer.complete(
                            finish_reason,
                            error_message=record.error_message,
                            usage=record.usage if record.HasField("usage") else None,
                        )
                    else:
                        await writer.write(record)
                        tokens += 1
        return Answered(tokens, failed=finish_reason is FinishReason.ERROR)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        from openai import APIConnectionError, APIStatusError, OpenAIError

        try:
            yield
        except APIConnectionError:
            raise UpstreamError("the connection to the model server failed") from None
        except APIStatusError as error:
            raise UpstreamError(f"the model server answered {error.status_code}{self._why(error)}") from None
        except OpenAIError as error:
            raise UpstreamError(f"the model server failed: {type(error).__name__}") from None
        except Exception as error:
            # In the middle of an answer, the errors of the package's own HTTP client come as they are.
            if type(error).__module__.partition(".")[0] not in _HTTP_CLIENTS:
                raise
            raise UpstreamError(f"the connection to the model server broke ({type(error).__name__})") from None

    def _why(self, error: APIStatusError) -> str:
        """What the server says, which readers get: without the key, and nothing where it is about keys."""
        if error.status_code in _ABOUT_KEYS:
            return ""
        text = " ".join(str(error).split())
        return f": {text.replace(self._key, '…')[:_MAX_CHARACTERS]}" if self._key else f": {text[:_MAX_CHARACTERS]}"
