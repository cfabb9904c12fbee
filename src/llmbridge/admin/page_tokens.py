"""The page tokens of this layer's listings (see model.page_tokens), and the error for one that is not of a listing."""

from llmbridge.errors import InvalidField
from llmbridge.model import page_tokens
from llmbridge.model.page_tokens import make_page_token

__all__ = ["foreign_page_token", "make_page_token", "parse_page_token"]


def parse_page_token(text: str, kind: str, scope: str) -> tuple[int, str]:
    """Decode a place in the listing of this kind and scope. Raises InvalidField."""
    try:
        return page_tokens.parse_page_token(text, kind, scope)
    except ValueError:
        raise foreign_page_token() from None


def foreign_page_token() -> InvalidField:
    """The error for a token that no page of this listing gave."""
    return InvalidField("page_token", page_tokens.FOREIGN)
