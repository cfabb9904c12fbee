"""What the readers of a response are told when its source failed: one line for people, without secrets.

Knows the SDKs' exceptions by their attributes only, so that none has to be installed.
"""

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from llmbridge.client.adapters.fields import field, text_of

__all__ = ["SourceError", "explain", "in_one_line"]

# The completion is to stay far below every size limit.
_MAX_BYTES = 1024
_FIRST_ERROR_STATUS = 400
_SDKS = ("openai", "anthropic")
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "anyio", "h11", "h2")
_SECRET_HEADERS = ("authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie")
# Shorter values of headers and URLs are words, and taking them out would make nonsense of the message.
_SHORTEST_SECRET = 6
# Keys as providers write them, some of them half masked, and credentials in headers and URLs.
_SECRETS = re.compile(
    r"""\b(?:sk|rk|pk|ak|gsk|hf|xai|nvapi|pplx)[-_][\w*.-]{6,}
      | \bAIza[\w-]{20,}
      | \beyJ[\w-]+\.[\w-]+\.[\w-]+
      | (?<=\bbearer\s)\S+ | (?<=\bbasic\s)\S{8,}
      | (?<=://)[^/\s@]+(?=@)
      | (?<=[?&])[\w.-]+=[^\s"'<>]+""",
    re.VERBOSE | re.IGNORECASE,
)
_REMOVED = "[removed]"


class SourceError(Exception):
    """A source of tokens failed, and the message is for people: `pipe` gives it to the readers as it is.

    Raise it from your own async iterator to choose what they see; of other exceptions that are not an SDK's they see
    the name only, since the text may hold anything.
    """


def explain(error: Exception) -> str:
    """Tell readers why the source failed."""
    if isinstance(error, SourceError):
        return in_one_line(str(error))
    name = type(error).__name__
    if _from_one_of(_SDKS, error) and not _is_broken_connection(error):
        said = _provider_message(error)
        status = field(error, "status_code")
        # An error in the middle of an answer comes with the status of its beginning.
        how = (
            f"answered {status}" if isinstance(status, int) and status >= _FIRST_ERROR_STATUS else f"failed with {name}"
        )
        return in_one_line(
            f"the model endpoint {how}: {said}" if said else f"the model endpoint {how}", _secrets(error)
        )
    if _is_broken_connection(error):
        return f"the connection to the model endpoint broke: {type(error.__cause__ or error).__name__}"
    return f"the source of the response failed: {name}"


def in_one_line(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Bring a message of somebody else's to one line of bounded length, and take out what looks like a secret."""
    for secret in secrets:
        text = text.replace(secret, _REMOVED)
    line = " ".join(_SECRETS.sub(_REMOVED, text).split())
    return line.encode(errors="replace")[:_MAX_BYTES].decode(errors="ignore")


def _from_one_of(packages: tuple[str, ...], error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] in packages for kind in type(error).__mro__)


def _is_broken_connection(error: Exception) -> bool:
    # The SDKs wrap what fails while they ask; of what fails later, some comes as the HTTP library raised it.
    return (
        isinstance(error, OSError)
        or _from_one_of(_HTTP_LIBRARIES, error)
        or any(kind.__name__ == "APIConnectionError" for kind in type(error).__mro__)
    )


def _provider_message(error: Exception) -> str:
    # OpenAI's SDK gives the error object of the body, Anthropic's the whole body.
    body = field(error, "body")
    return text_of(body, "error", "message") or text_of(body, "message") or text_of(error, "message")


def _secrets(error: Exception) -> tuple[str, ...]:
    """What was sent to the endpoint in confidence: some endpoints repeat it in their errors."""
    return tuple(sorted({found for found in _sent(error) if len(found) >= _SHORTEST_SECRET}, key=len, reverse=True))


def _sent(error: Exception) -> Iterator[str]:
    # Reading `request` of some exceptions raises if it was never set.
    request = getattr(error, "request", None)
    headers = field(request, "headers")
    for name in _SECRET_HEADERS:
        value = text_of(headers, name)
        yield value
        yield value.partition(" ")[2]
    url = urlsplit(str(field(request, "url") or ""))
    yield url.password or ""
    for _, value in parse_qsl(url.query):
        yield value
