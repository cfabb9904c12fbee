"""Cursors: what is written is read back, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import MAX_SEQUENCE, checksum_of

NUMBERS = st.integers(0, MAX_SEQUENCE)
CURSORS = st.builds(Cursor, NUMBERS, NUMBERS, st.binary(max_size=4).map(checksum_of))


@given(CURSORS)
def test_what_is_written_is_read_back(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


@given(CURSORS, CURSORS)
def test_two_cursors_are_two_texts(one: Cursor, other: Cursor) -> None:
    assert (str(one) == str(other)) is (one == other)


@given(
    st.text(max_size=40)
    | st.from_regex(r"[0-9]{1,17}-[0-9]{1,17}-[0-9a-fA-F]{7,9}", fullmatch=True)
    | st.builds("".join, st.lists(st.sampled_from(["0", "1", "-", "a", "\n", " ", "٣", "f" * 8]), max_size=12))
)
def test_anything_else_is_refused(text: str) -> None:
    try:
        cursor = Cursor.parse(text)
    except ValueError:
        return
    assert str(cursor) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1-1",
        "1-1-",
        "1-1-0000000",
        "1-1-000000000",
        "1-1-0000000G",
        "1-1-0000000F",
        "-1-1-00000000",
        "1--1-00000000",
        "1-1-00000000\n",
        " 1-1-00000000",
        "+1-1-00000000",
        "1_0-1-00000000",
        "٣-1-00000000",
        f"{2**53}-1-00000000",
        f"1-{2**53}-00000000",
        "1-1-00000000-1",
        "01-1-00000000",
        "1-01-00000000",
    ],
)
def test_what_is_no_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        Cursor.parse(text)


def test_the_largest_cursor() -> None:
    largest = Cursor(MAX_SEQUENCE, MAX_SEQUENCE, "ffffffff")
    assert Cursor.parse(str(largest)) == largest


def test_no_checksum_is_that_of_nothing() -> None:
    assert checksum_of(b"") == NO_CHECKSUM


@given(st.binary(max_size=64))
def test_a_checksum_has_eight_digits(fragment: bytes) -> None:
    assert len(checksum_of(fragment)) == 8
    assert Cursor.parse(f"1-1-{checksum_of(fragment)}").checksum == checksum_of(fragment)
