"""Where tokens come from: SDKs' streams and other async iterators, as records for a writer.

    completion = await client.pipe(openai.chat.completions.create(..., stream=True), "session", "model", "response")

`pipe` takes the stream of an SDK's async client, whichever it is, or any async iterator of strings or tokens. Who wants
the records themselves, or to tell which temperature was asked for, uses the functions that make them. No SDK is needed
to import this: their events are known by their shape.
"""

from llmbridge.client.adapters.failures import SourceError
from llmbridge.client.adapters.piping import RecordWriter, pipe
from llmbridge.client.adapters.records import (
    Records,
    Source,
    anthropic_records,
    openai_records,
    openai_responses_records,
    records_of,
    text_records,
)

__all__ = [
    "RecordWriter",
    "Records",
    "Source",
    "SourceError",
    "anthropic_records",
    "openai_records",
    "openai_responses_records",
    "pipe",
    "records_of",
    "text_records",
]
