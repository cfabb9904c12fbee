"""What keeps a bridge from starting. Apart from what starts it, so that a supervisor needs nothing of that."""


class CannotStart(Exception):
    """The bridge can't start; the message says what to change."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the first exception of a group that is none itself."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
