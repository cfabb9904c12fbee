"""Asks an OpenAI-compatible endpoint and pipes its streamed answer into a writer, for `llmbridge produce` and the demo.

The only place of the command line that uses the `openai` package, an extra; knows no readers and nothing of who runs
the endpoint.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmbridge.client.adapters import Records, RecordWriter, SourceError, openai_records, pipe
from llmbridge.v1.token_pb2 import Completion, Token

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionChunk

__all__ = ["Endpoint", "ModelEndpointError", "Question", "find_model_name", "load_openai", "pipe_answer"]

_MODELS_NAMED = 8
_NOT_INSTALLED = "the package 'openai' is not installed; run: pip install 'llmbridge[openai]'"


class ModelEndpointError(SourceError):
    """The endpoint can't be used or failed. The message is one line for people."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the model is. `base_url` ends in `/v1` with most servers; local ones take any `api_key`."""

    base_url: str
    api_key: str = field(default="none", repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask. What is None is left to the endpoint, since not every one takes every parameter."""

    model: str
    prompt: str
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


def load_openai() -> None:
    """Imports the `openai` package, which takes about half a second; ModelEndpointError if it is not installed."""
    try:
        import openai  # noqa: F401
    except ImportError:
        raise ModelEndpointError(_NOT_INSTALLED) from None


async def find_model_name(endpoint: Endpoint) -> str:
    """Returns the endpoint's model if it has exactly one.

    Raises ModelEndpointError, naming some, if there are several to choose from.
    """
    with _explaining(endpoint):
        async with _client(endpoint) as client:
            names = [model.id async for model in client.models.list()]
    if len(names) != 1:
        some = ", ".join(names[:_MODELS_NAMED]) + (", …" if len(names) > _MODELS_NAMED else "")
        raise ModelEndpointError(f"name a model with --model or OPENAI_MODEL: {endpoint.base_url} has {some or 'none'}")
    return names[0]


async def pipe_answer(
    endpoint: Endpoint,
    question: Question,
    sink: RecordWriter,
    *,
    on_ask: Callable[[], None] = lambda: None,
    on_chunk: Callable[[ChatCompletionChunk], None] = lambda _: None,
    on_token: Callable[[Token], None] = lambda _: None,
) -> Completion:
    """Asks the question and writes the answer, token by token as it comes, and its completion; returns the latter.

    `on_ask` is called when the question is about to be sent; `on_chunk` is told each piece as the endpoint sent it and
    `on_token` each token, both before it is written. When the bridge says that the stream is over (a reader stopped it,
    say), the connection to the endpoint is closed, at which it stops generating, and the sink's error is raised. Raises
    ModelEndpointError when the endpoint fails, after completing the stream with an error that says the same.
    """
    chunks = _answer(endpoint, question, on_ask, on_chunk)
    records = openai_records(chunks, temperature=question.temperature, max_tokens=question.max_tokens)
    try:
        return await pipe(_told(records, on_token), sink)
    except ModelEndpointError:
        raise
    except SourceError as error:
        raise ModelEndpointError(str(error)) from error


async def _answer(
    endpoint: Endpoint,
    question: Question,
    on_ask: Callable[[], None],
    on_chunk: Callable[[ChatCompletionChunk], None],
) -> AsyncGenerator[ChatCompletionChunk, None]:
    load_openai()
    from openai import omit

    with _explaining(endpoint):
        async with _client(endpoint) as client:
            on_ask()
            stream = await client.chat.completions.create(
                model=question.model,
                messages=[{"role": "user", "content": question.prompt}],
                stream=True,
                stream_options={"include_usage": True},
                temperature=omit if question.temperature is None else question.temperature,
                max_tokens=omit if question.max_tokens is None else question.max_tokens,
                seed=omit if question.seed is None else question.seed,
            )
            async with stream:
                async for chunk in stream:
                    on_chunk(chunk)
                    yield chunk


async def _told(records: Records, on_token: Callable[[Token], None]) -> AsyncGenerator[Token | Completion, None]:
    async with aclosing(records) as told:
        async for record in told:
            if isinstance(record, Token):
                on_token(record)
            yield record


def _client(endpoint: Endpoint) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)


@contextmanager
def _explaining(endpoint: Endpoint) -> Iterator[None]:
    """Turn the SDK's errors into one line."""
    load_openai()
    from openai import APIConnectionError, APIStatusError, OpenAIError

    try:
        yield
    except APIConnectionError as error:
        cause = error.__cause__
        why = f"{type(cause).__name__} {cause}".strip() if cause else str(error)
        raise ModelEndpointError(f"the connection to {endpoint.base_url} failed: {why}") from error
    except APIStatusError as error:
        raise ModelEndpointError(f"{endpoint.base_url} answered {error.status_code}: {_one_line(error)}") from error
    except UnicodeEncodeError:
        # Which of them it is, and what is in it, is not for readers: it may be the key.
        raise ModelEndpointError(
            "the key, the address, the model's name or the prompt has what can't be sent"
        ) from None
    except OpenAIError as error:
        raise ModelEndpointError(f"{endpoint.base_url} failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
