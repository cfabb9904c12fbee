"""A port that stays the same while nobody listens on it."""

import socket


def hold_port() -> socket.socket:
    """Take a free port of 127.0.0.1, for servers that reuse addresses to listen on, one after the other.

    Meanwhile connections are refused. Were it not held, the kernel could give it to an outgoing connection; one that
    tries to come to the port itself would even meet itself there.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held
