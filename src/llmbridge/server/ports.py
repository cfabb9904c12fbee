"""Reserves TCP ports for workers that will listen on them, and keeps others from joining by accident.

Several processes of one user may listen on a port if each asks for it (SO_REUSEPORT); Linux then gives each connection
to one of those that listen. A reserved port is bound and never listened on, so it gets none.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_Address = tuple[str, int]


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Keep a port of this host, a free one for 0, while the context lasts, and give its number.

    Processes of this user that ask to share it can listen on it meanwhile; others are refused. Raises OSError where the
    port is taken, also by workers of another supervisor, or the host is none of this machine.
    """
    with ExitStack() as held:
        try:
            number = _reserve(host.strip("[]"), port, held)
        except OSError as error:
            raise OSError(f"can't listen on {host}:{port}, is it taken? ({error})") from None
        yield number


def _reserve(host: str, port: int, held: ExitStack) -> int:
    number = port
    missing: list[OSError] = []
    # One name may be several addresses, as localhost is, of which this machine may lack some.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in found:
        try:
            number = _reserve_address(family, (str(address[0]), number), held)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing.append(error)
    if len(missing) == len(found):
        raise missing[0]
    return number


def _reserve_address(family: socket.AddressFamily, address: _Address, held: ExitStack) -> int:
    if address[1]:
        _refuse_if_taken(family, address)
    reservation = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind(address)
    number: int = reservation.getsockname()[1]
    # Another supervisor that starts at this moment could reserve it, too: neither's workers listen yet. The name is one
    # of this machine (more exactly, of its network namespace) and vanishes with the process.
    lock = held.enter_context(socket.socket(socket.AF_UNIX))
    lock.bind(f"\0llmbridge {address[0]} {number}")
    return number


def _refuse_if_taken(family: socket.AddressFamily, address: _Address) -> None:
    # Without SO_REUSEPORT this fails wherever anybody listens; with SO_REUSEADDR not for connections that have ended.
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(address)
