"""Puts messages that are encoded already into another one. Knows protobuf's wire format, and no message."""

_MORE = 0x80


def embedded(field: int, message: bytes) -> bytes:
    """Encode a message as a field (1 to 15) of the message around it. Fields are put together by joining them."""
    length = len(message)
    if length < _MORE:
        return bytes((field << 3 | 2, length)) + message
    head = bytearray((field << 3 | 2,))
    while length >= _MORE:
        head.append(length & 0x7F | _MORE)
        length >>= 7
    head.append(length)
    return bytes(head) + message
