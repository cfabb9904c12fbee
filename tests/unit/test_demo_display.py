"""How the demo looks, where it is not a matter of taste: nothing of the answer is lost, and the verdict is right."""

import io

import pytest
from rich.console import Console

from llmbridge.cli.demo_checks import Check, Cut, Figures
from llmbridge.cli.demo_display import LiveDisplay, PlainDisplay, make_display, show_result


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30, legacy_windows=False, _environ={})


def printed(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def test_a_terminal_gets_panes_and_a_pipe_lines() -> None:
    assert isinstance(make_display(console(terminal=True)), LiveDisplay)
    assert isinstance(make_display(console(terminal=False)), PlainDisplay)


def test_plain_lines_hold_the_whole_text_of_each_reader() -> None:
    out = console(terminal=False)
    display = PlainDisplay(out)
    words = [f"word{i} " for i in range(100)] + ["\n\n", "last[bold]", " line"]
    display.begin("tiny", "say words", ("A", "B"))
    for i, word in enumerate(words):
        display.received("A", word)
        display.received("B", word)
        if i == 50:
            display.status("B", "cut off")
    display.end()
    for reader in ("A", "B"):
        lines = [
            line.removeprefix(f"{reader} | ") for line in printed(out).splitlines() if line.startswith(f"{reader} |")
        ]
        assert "".join(lines).split() == "".join(words).split()
        assert len(lines) > 5
        assert max(map(len, lines)) <= 96
    assert "B : cut off" in printed(out)


def test_a_line_without_a_space_is_broken_at_the_width() -> None:
    out = console(terminal=False)
    display = PlainDisplay(out)
    display.begin("tiny", "say x", ("A",))
    display.received("A", "x" * 200)
    display.end()
    assert [len(line) for line in printed(out).splitlines()[1:]] == [4 + 96, 4 + 96, 4 + 8]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_the_model_says_does_not_steer_the_terminal(terminal: bool) -> None:
    out = console(terminal=terminal)
    display = make_display(out)
    display.begin("tiny", "attack", ("A",))
    display.received("A", "\x1b]0;owned\x07 and \x9b31m done")
    display.end()
    assert "\x1b]" not in printed(out)
    assert "\x9b" not in printed(out)
    assert "\x07" not in printed(out)
    assert "done" in printed(out)


def test_panes_show_the_end_of_the_text_and_each_status() -> None:
    out = console(terminal=True)
    display = LiveDisplay(out)
    display.begin("tiny", "count", ("A", "B"))
    for i in range(400):
        display.sent()
        display.received("A", f"{i}\n")
    display.status("B", "cut off after 3 tokens")
    display.end()
    last_drawing = printed(out).rpartition("prompt")[2]
    assert "399" in last_drawing
    assert "cut off after 3 tokens" in last_drawing
    assert "400 tokens" in last_drawing


def test_end_without_begin_is_nothing() -> None:
    for display in (LiveDisplay(console(terminal=True)), PlainDisplay(console(terminal=False))):
        display.end()


FIGURES = Figures(tokens=6, first_token_ms=510.0, p50_ms=10.0, p99_ms=12.5, cut=Cut(2, 0.24, 2))


@pytest.mark.parametrize(("problem", "verdict"), [("", "PASS"), ("at place 4 came 5 instead of 4", "FAIL")])
def test_one_failed_check_fails_all_and_says_why(problem: str, verdict: str) -> None:
    out = console(terminal=False)
    show_result(
        out, [("A", FIGURES, [Check("order", "")]), ("B", FIGURES, [Check("text", ""), Check("order", problem)])]
    )
    assert printed(out).splitlines()[-1] == verdict
    assert problem in printed(out)
    assert "12.5 ms" in printed(out)
    assert "240.0 ms" in printed(out)


def test_what_was_not_shown_is_told_and_fails_nothing() -> None:
    out = console(terminal=False)
    show_result(out, [("A", FIGURES, [Check("order", "")])], not_shown="B: not cut: too short")
    assert printed(out).splitlines()[-2:] == ["– B: not cut: too short", "PASS"]
