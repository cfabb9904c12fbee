"""Reads fields of what an SDK or a server made, none of which can be relied upon. Knows no format.

The SDKs enforce neither their types nor their required fields on what a server sends: any field may be missing, null
or of another type. What can't be used counts as absent here, since one odd field must not end an answer.
"""

from collections.abc import Iterable, Mapping

__all__ = ["count_of", "field", "index_of", "items_of", "text_of"]

# What every reader's JSON can carry, far below the contract's 64 bits, so that sums fit too.
_MAX_COUNT = 2**53 - 1
_MAX_INDEX = 2**32 - 1


def field(value: object, *path: str) -> object:
    """Follow a path of attributes, or of keys where there is a mapping; None where it ends early."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if value is None:
            return None
    return value


def text_of(value: object, *path: str) -> str:
    """The text there; empty if it is none. May hold halves of surrogate pairs, as JSON may."""
    found = field(value, *path)
    return found if isinstance(found, str) else ""


def items_of(value: object, *path: str) -> Iterable[object]:
    """The list there; empty if it is none."""
    found = field(value, *path)
    return found if isinstance(found, list | tuple) else ()


def count_of(value: object, *path: str) -> int:
    """The count there; 0 if it is none, or absurd."""
    found = field(value, *path)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    return found if isinstance(found, int) and 0 <= found <= _MAX_COUNT else 0


def index_of(value: object, *path: str) -> int | None:
    """The index there, None if it is none."""
    found = field(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= _MAX_INDEX else None
