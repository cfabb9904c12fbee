"""What came in one read is taken in one go, errors included."""

from typing import Any

import hiredis
import pytest
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import MovedError

from llmbridge.log.connections import Connector, replies_at_hand


class Parser:
    def __init__(self, reader: Any) -> None:
        self._reader = reader


class Connection:
    def __init__(self, reader: Any) -> None:
        self._parser = Parser(reader)


def reader_with(data: bytes) -> Any:
    made = hiredis.Reader(
        replyError=lambda text: MovedError(text.removeprefix("MOVED ")), notEnoughData=NOT_ENOUGH_DATA
    )
    made.feed(data)
    return made


def test_whole_replies_only() -> None:
    connection: Any = Connection(reader_with(b"*2\r\n$1\r\na\r\n$1\r\nb\r\n:5\r\n$3\r\nab"))
    assert list(replies_at_hand(connection)) == [[b"a", b"b"], 5]
    connection._parser._reader.feed(b"c\r\n")
    assert list(replies_at_hand(connection)) == [b"abc"]


def test_an_error_is_raised_in_its_turn() -> None:
    connection: Any = Connection(reader_with(b":1\r\n-MOVED 5 127.0.0.1:7000\r\n:2\r\n"))
    replies = replies_at_hand(connection)
    assert next(replies) == 1
    with pytest.raises(MovedError):
        next(replies)


def test_another_parser_has_nothing_at_hand() -> None:
    connection: Any = Connection(None)
    assert list(replies_at_hand(connection)) == []


def test_redis_py_keeps_its_reader_where_it_is_looked_for() -> None:
    """It is a private name: should it move, wake-ups still work, but cost more."""
    made: Any = Connector("redis://127.0.0.1", 1).make("test")
    assert "_reader" in type(made._parser).__slots__
