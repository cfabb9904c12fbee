"""Names in Redis: no two streams share any, and all of a session lie in one slot."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbridge.log.keys import Keys
from llmbridge.model.names import StreamName

KEYS = Keys("llm", 64)
# Mostly what separates, tags, escapes or looks like an escape, so that a sloppy encoding meets itself.
PARTS = st.text(st.sampled_from(":/{}% %3Aa0é\u0301🙂*?[]\\'\"+-_.~@") | st.characters(codec="utf-8"), max_size=8)
NAMES = st.builds(StreamName, PARTS, PARTS, PARTS)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[StreamName, StreamName]:
    """Two names, often of the same characters cut into parts at other places."""
    one = draw(NAMES)
    if draw(st.booleans()):
        return one, draw(NAMES)
    joined = draw(st.sampled_from(["", ":", "%3A", "/"])).join((one.session_id, one.model_id, one.response_id))
    cuts = sorted(draw(st.tuples(*[st.integers(0, len(joined))] * 2)))
    return one, StreamName(joined[: cuts[0]], joined[cuts[0] : cuts[1]], joined[cuts[1] :])


@given(neighbours())
def test_two_names_are_two_streams(pair: tuple[StreamName, StreamName]) -> None:
    one, other = (KEYS.stream(name) for name in pair)
    same_session = pair[0].session_id == pair[1].session_id
    same = pair[0] == pair[1]
    assert (one.log == other.log) is same
    assert (one.open_member == other.open_member) is same
    assert (one.session_index == other.session_index) is same_session
    assert ((one.session_index, one.session_member) == (other.session_index, other.session_member)) is same


@given(NAMES)
def test_members_of_indexes_give_the_name_back(name: StreamName) -> None:
    keys = KEYS.stream(name)
    assert Keys.name_of_open(keys.open_member) == name
    assert Keys.name_in_session(name.session_id, keys.session_member) == name


@given(NAMES, st.integers(1, 16_384))
def test_all_of_a_session_lies_in_one_slot(name: StreamName, partitions: int) -> None:
    keys = Keys("p", partitions)
    stream = keys.stream(name)
    partition = keys.partition_of(name.session_id)
    assert 0 <= partition < partitions
    assert stream.open_index == keys.open_index(partition)
    assert stream.feed == keys.feed(partition)
    assert keys.kept_alive_of(name) == keys.kept_alive(partition)
    for key in (stream.log, stream.open_index, stream.session_index, stream.feed, keys.kept_alive_of(name)):
        # Redis Cluster hashes what is between the first { and the next }.
        assert re.findall(r"[{}]", key) == ["{", "}"]
        assert key[key.index("{") + 1 : key.index("}")] == str(partition)


@given(NAMES)
def test_keys_are_ascii_without_anything_that_needs_quoting(name: StreamName) -> None:
    stream = KEYS.stream(name)
    allowed = set(string.ascii_letters + string.digits + "_.-~%:{}")
    for key in (stream.log, stream.open_index, stream.session_index, stream.open_member, stream.session_member):
        assert set(key) <= allowed


@given(NAMES, NAMES)
def test_kinds_of_keys_never_meet(one: StreamName, other: StreamName) -> None:
    stream, another = KEYS.stream(one), KEYS.stream(other)
    kinds = [
        {stream.log, another.log},
        {stream.open_index, another.open_index},
        {stream.session_index, another.session_index},
        {KEYS.kept_alive_of(one), KEYS.kept_alive_of(other)},
        {KEYS.partition_count},
    ]
    assert len(set.union(*kinds)) == sum(map(len, kinds))


def test_the_scripts_find_a_log_by_the_member_of_an_index() -> None:
    # lua/sweep.lua and lua/stream.lua put keys together from members: this is the form they count on.
    stream = KEYS.stream(StreamName("a:b", "m{}", "r %"))
    assert stream.log == f"llm:stream:{{{KEYS.partition_of('a:b')}}}:" + stream.open_member
    assert stream.log.endswith(f":{stream.session_member}")
    assert stream.session_index.endswith(":" + stream.open_member.split(":")[0])


@pytest.mark.parametrize(
    ("session", "partition"), [("", 0), ("s", 0x1B0ECF0B % 64), ("é", 0x0E048D3E % 64), ("123456789", 0xCBF43926 % 64)]
)
def test_the_partition_is_a_checksum_that_never_changes(session: str, partition: int) -> None:
    # Stored streams are found again only while this stays so.
    assert KEYS.partition_of(session) == partition


def test_the_layout_of_keys_never_changes() -> None:
    keys = Keys("llm", 1).stream(StreamName("s", "m", ""))
    assert (keys.log, keys.open_index, keys.session_index, keys.open_member, keys.session_member) == (
        "llm:stream:{0}:s:m:",
        "llm:open:{0}",
        "llm:session:{0}:s",
        "s:m:",
        "m:",
    )
    assert Keys("llm", 1).partition_count == "llm:partitions"
