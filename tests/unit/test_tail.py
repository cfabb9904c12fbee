"""The tail of one stream: what it takes, what it keeps, and whom it serves."""

from collections.abc import Callable

import pytest

from llmbridge.hub.tail import MESSAGE_BYTES, WINDOW_BYTES, WINDOW_ENTRIES, Tail
from llmbridge.log.reading import Tip
from llmbridge.log.wakeup import WakeUp
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run, checksum_of
from llmbridge.rpc.wire import ProtoWire
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.token_pb2 import Token

START = Cursor(7, 0, NO_CHECKSUM)


def run(first: int, *texts: str, incarnation: int = 7, sealed: bool = False) -> Run:
    fragment = SubscribeResponse(tokens=[Token(text=text) for text in texts]).SerializeToString()
    last = first + len(texts) - 1
    return Run(incarnation, first, last, checksum_of(fragment), 1_000 + last, sealed, (fragment,))


def wake_up(of: Run, after: Run | None) -> WakeUp:
    previous = None if after is None else after.checksum
    [fragment] = of.fragments
    return WakeUp(of.incarnation, of.first, of.last, of.checksum, previous, of.appended_ms, of.sealed, fragment)


def after(of: Run) -> Cursor:
    return Cursor(of.incarnation, of.last, of.checksum)


def new_tail(*, ready: bool = True) -> Tail:
    tail = Tail("log", ProtoWire())
    if ready:
        tail.ready.set()
    return tail


def texts_after(tail: Tail, cursor: Cursor) -> tuple[list[str], Cursor, bool] | None:
    found = tail.message_after(cursor)
    if found is None:
        return None
    new_cursor = found.cursor
    assert new_cursor is not None
    message = SubscribeResponse.FromString(found.message)
    assert message.first_sequence == cursor.sequence + 1
    assert message.cursor == str(new_cursor)
    assert message.appended_ms == 1_000 + new_cursor.sequence
    return [token.text for token in message.tokens], new_cursor, found.ended


class TestWakeUps:
    def test_those_that_continue_are_taken(self) -> None:
        tail = new_tail()
        one, two = run(1, "a", "b"), run(3, "c", sealed=True)
        assert tail.accept(wake_up(one, None))
        assert tail.accept(wake_up(two, one))
        assert tail.cursor == after(two)
        assert tail.sealed
        assert texts_after(tail, START) == (["a", "b", "c"], after(two), True)
        assert texts_after(tail, after(one)) == (["c"], after(two), True)

    def test_a_created_stream_begins_with_its_header(self) -> None:
        tail = new_tail()
        header = Run(7, 1, 0, NO_CHECKSUM, 1_000, False, (b"",))
        assert tail.accept(wake_up(header, None))
        assert tail.cursor == START
        assert tail.message_after(START) is None
        first = run(1, "a")
        assert tail.accept(wake_up(first, header))
        assert texts_after(tail, START) == (["a"], after(first), False)

    @pytest.mark.parametrize(
        "other",
        [
            wake_up(run(4, "d"), run(3, "c")),  # one is missing
            wake_up(run(2, "b"), run(1, "a")),  # seen before
            wake_up(run(3, "c"), run(1, "a", "x")),  # follows another entry
            wake_up(run(3, "c", incarnation=8), run(1, "a", "b")),  # of another stream
            wake_up(run(3, "c"), None),  # first of its stream
        ],
    )
    def test_all_others_call_for_a_look_at_the_log(self, other: WakeUp) -> None:
        tail = new_tail()
        seen = run(1, "a", "b")
        tail.accept(wake_up(seen, None))
        assert not tail.accept(other)
        assert tail.cursor == after(seen)

    def test_nothing_is_taken_before_the_log_was_seen(self) -> None:
        tail = new_tail(ready=False)
        assert not tail.accept(wake_up(run(1, "a"), None))
        assert tail.cursor is None

    def test_the_first_that_is_heard_of_an_absent_stream_must_be_its_first(self) -> None:
        tail = new_tail()
        assert not tail.accept(wake_up(run(2, "b"), run(1, "a")))

    @pytest.mark.parametrize(
        "message",
        [
            b"7 1 1 1000 0000000\xff - 0\nx",  # no text
            b"7 1 1 1000 00000000 -\nx",  # too few
            b"7 1 1 1000 00000000 - 0 0\nx",  # too many
            b"7 one 1 1000 00000000 - 0\nx",  # no number
        ],
    )
    def test_what_is_none_is_told_as_a_value_error(self, message: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            WakeUp.parse(message)

    def test_what_a_script_says_is_read(self) -> None:
        assert WakeUp.parse(b"7 3 4 1000 0a0b0c0d 00ff00ff 1\nfrag\nment") == WakeUp(
            7, 3, 4, "0a0b0c0d", "00ff00ff", 1_000, True, b"frag\nment"
        )
        first = WakeUp.parse(b"7 1 1 1000 0a0b0c0d - 0\n")
        assert first == WakeUp(7, 1, 1, "0a0b0c0d", None, 1_000, False, b"")
        assert WakeUp.parse(b"7 1 1 1000 0a0b0c0d - 0") is None


class TestWindow:
    def test_old_entries_leave_by_number(self) -> None:
        tail, runs = new_tail(), [run(i, f"{i}") for i in range(1, WINDOW_ENTRIES + 101)]
        for entry in runs:
            tail.extend(entry)
        assert len(tail._window) == WINDOW_ENTRIES
        assert tail.message_after(after(runs[98])) is None
        assert texts_after(tail, after(runs[99])) == ([f"{i}" for i in range(101, 357)], after(runs[-1]), False)

    def test_old_entries_leave_by_size(self) -> None:
        tail = new_tail()
        for i in range(1, 101):
            tail.extend(run(i, "x" * 10_000))
            assert tail._window_bytes == sum(chunk.size for chunk in tail._window) <= WINDOW_BYTES
        assert len(tail._window) == WINDOW_BYTES // 10_000

    def test_the_last_entry_stays_whatever_its_size(self) -> None:
        tail, small, large = new_tail(), run(1, "a"), run(2, "x" * (WINDOW_BYTES + 1))
        tail.extend(small)
        tail.extend(large)
        assert tail.message_after(START) is None
        found = texts_after(tail, after(small))
        assert found is not None
        assert found[1] == after(large)

    def test_readers_that_are_behind_get_larger_messages_up_to_a_size(self) -> None:
        tail = new_tail()
        for i in range(1, 21):
            tail.extend(run(i, "x" * 9_000))
        found = tail.message_after(START) or pytest.fail("not live")
        assert 9_000 * 6 < len(found.message) <= MESSAGE_BYTES + 100
        assert found.cursor is not None
        assert found.cursor.sequence == 7

    def test_readers_at_the_same_place_share_one_message(self) -> None:
        tail = new_tail()
        tail.extend(run(1, "a"))
        one, two = tail.message_after(START), tail.message_after(START)
        assert one is not None
        assert two is not None
        assert one.message is two.message

    def test_a_jump_leaves_nothing_to_serve(self) -> None:
        tail = new_tail()
        tail.extend(run(1, "a"))
        tail.jump(Tip(Cursor(7, 900, "0badcafe"), 10, 1, True))
        assert tail.message_after(START) is None
        assert (len(tail._window), tail._window_bytes) == (0, 0)
        assert tail.sealed
        nine_hundred_one = run(901, "b")
        tail.extend(nine_hundred_one)
        assert texts_after(tail, Cursor(7, 900, "0badcafe")) == (["b"], after(nine_hundred_one), False)


class TestWhoIsLive:
    def test_not_who_saw_another_stream(self) -> None:
        tail = new_tail()
        tail.extend(run(1, "a"))
        assert tail.message_after(Cursor(8, 0, NO_CHECKSUM)) is None

    def test_not_who_saw_another_entry_before(self) -> None:
        """The log lost its tail and regrew while the reader was held up: only the log may answer it."""
        tail, seen = new_tail(), run(1, "a")
        tail.extend(seen)
        tail.extend(run(2, "b"))
        assert tail.message_after(after(seen)) is not None
        assert tail.message_after(after(run(1, "another"))) is None

    def test_not_who_stands_inside_an_entry(self) -> None:
        tail, entry = new_tail(), run(1, "a", "b", "c")
        tail.extend(entry)
        assert tail.message_after(Cursor(7, 1, entry.checksum)) is None


class TestListening:
    def test_all_are_told_of_each_kind_of_change(self) -> None:
        tail, told = new_tail(), []
        listeners = [lambda i=i: told.append(i) for i in range(3)]
        tail.listeners.update(dict.fromkeys(listeners))
        changes: tuple[Callable[[], None], ...] = (
            lambda: tail.extend(run(1, "a")),
            lambda: tail.jump(Tip(Cursor(7, 5, "0badcafe"), 10, 1, False)),
            tail.close,
        )
        for change in changes:
            told.clear()
            change()
            assert told == [0, 1, 2]

    def test_those_that_leave_are_not_told(self) -> None:
        tail, told = new_tail(), []
        listener = lambda: told.append(1)  # noqa: E731
        tail.listeners[listener] = None
        del tail.listeners[listener]
        tail.close()
        assert told == []
