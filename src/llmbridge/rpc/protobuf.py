"""The little of protobuf's encoding that is written by hand, around bytes that are passed on unopened."""

VARINT, LENGTH = 0, 2
"""Wire types."""

SHORT = 4_096
"""The sizes of most messages, and the numbers of most streams' records, are below."""


def tag(number: int, wire_type: int) -> bytes:
    """Encode what comes before a field, whose number is below 16."""
    return bytes((number << 3 | wire_type,))


def encoded_varint(number: int) -> bytes:
    """Encode a number that is not negative."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


VARINTS = tuple(encoded_varint(number) for number in range(SHORT))
"""The numbers below SHORT, encoded."""
