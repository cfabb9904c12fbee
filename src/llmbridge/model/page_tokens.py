"""The page tokens of all listings: opaque to clients, and good only for the listing that gave them."""

import base64
import binascii
import json

from llmbridge.model.records import MAX_SEQUENCE

FOREIGN = "not from a page of this listing: take it from next_page_token, or leave it empty"
"""What is wrong with a token that no page of a listing gave."""


def make_page_token(kind: str, scope: str, number: int, member: str) -> str:
    """Encode a place in the listing of this kind and scope: a number, then a name."""
    return base64.urlsafe_b64encode(json.dumps([kind, scope, number, member]).encode()).decode()


def parse_page_token(text: str, kind: str, scope: str) -> tuple[int, str]:
    """Decode a place in the listing of this kind and scope. Raises ValueError."""
    try:
        match json.loads(base64.b64decode(text, altchars=b"-_", validate=True)):
            case [str(its_kind), str(its_scope), int(number), str(member)] if (
                its_kind == kind and its_scope == scope and 0 <= number <= MAX_SEQUENCE and not isinstance(number, bool)
            ):
                # JSON can escape half a character, which no encoding takes and no page ever held.
                member.encode()
                return number, member
    except (binascii.Error, ValueError, RecursionError):
        pass
    raise ValueError(FOREIGN)
