"""What the address of a reader says besides names: its query, checked, and the place to go on from.

Knows nothing of what is read.
"""

from collections.abc import Collection

from starlette.requests import Request

from llmbridge.gateway.access import QUERY_PARAMETER
from llmbridge.gateway.problems import invalid_field
from llmbridge.model.cursor import Cursor

__all__ = ["check_query", "cursor_of", "place_of"]


def check_query(request: Request, known: Collection[str], *, others: bool = False) -> None:
    """Raise Problem, naming it, for a parameter that is there twice; and for one that is not known, unless `others`."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in known or name == QUERY_PARAMETER:
            if name in seen:
                raise invalid_field(name, f"{name} is there twice")
            seen.add(name)
        elif not others:
            shown = name[:64]
            raise invalid_field(shown, f"there is no parameter {shown} here; there is {', '.join(known)}")


def place_of(request: Request) -> str:
    """Give the place to go on from: what EventSource keeps, or else what the page wrote into the address.

    That order, since an EventSource comes back with the same address, however far it has come since.
    """
    return request.headers.get("last-event-id") or request.query_params.get("cursor", "")


def cursor_of(request: Request) -> Cursor | None:
    """Give that place where it can only be a cursor; None where none is given. Raises Problem."""
    text = place_of(request)
    try:
        return Cursor.parse(text) if text else None
    except ValueError:
        raise invalid_field("cursor", "cursor: not a cursor of this bridge") from None
