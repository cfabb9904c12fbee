"""Finds the response that somebody means who names only a session. Knows nothing of how it is shown."""

from collections.abc import Callable

from llmbridge.gateway.calls import ask
from llmbridge.gateway.link import Link
from llmbridge.v1.stream_admin_service_pb2 import ListStreamsRequest
from llmbridge.v1.stream_pb2 import StreamInfo

__all__ = ["newest_response"]

# The one that is meant is nearly always the newest.
_FIRST_PAGE = 10
_NEXT_PAGES = 1_000


async def newest_response(
    link: Link, session_id: str, meant: Callable[[StreamInfo], bool] = lambda _: True
) -> StreamInfo | None:
    """Give the newest of the session's responses that is `meant`, or None. Raises ClientError."""
    request = ListStreamsRequest(session_id=session_id, page_size=_FIRST_PAGE)
    while True:
        page = await ask(link, link.admin.ListStreams, request)
        for info in page.streams:
            if meant(info):
                return info
        if not page.next_page_token:
            return None
        request.page_token, request.page_size = page.next_page_token, _NEXT_PAGES
