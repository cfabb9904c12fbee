"""What readers' messages look like on a terminal, in a pipe and as JSON."""

import io
import json

import pytest
from rich.console import Console

from llmbridge.cli.printing import JsonPrinter, TerminalPrinter, TextPrinter, json_line, visible
from llmbridge.client import Completion, FinishReason, Message, Token, ToolCall
from llmbridge.v1.stream_pb2 import StreamInfo

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def message(*tokens: Token, completion: Completion | None = None) -> Message:
    return Message(tokens=tokens, first_sequence=3, cursor="1-4-ab", completion=completion, appended_ms=7)


def on_terminal(*messages: Message) -> str:
    screen = io.StringIO()
    printer = TerminalPrinter(
        Console(file=screen, force_terminal=True, color_system="standard", width=20, highlight=False)
    )
    for one in messages:
        printer.show(one)
    printer.close()
    return screen.getvalue()


def test_a_terminal_shows_text_as_it_came() -> None:
    texts = ["  Hé", "llo [b]bold[/b] :smile: ", "and a line that is longer than the terminal is wide\n", "\n", " x "]
    assert on_terminal(*(message(Token(text=text)) for text in texts)) == "".join(texts) + "\n"


def test_a_terminal_tells_kinds_apart() -> None:
    shown = on_terminal(
        message(Token(reasoning="let me "), Token(reasoning="see"), Token(text="It is "), Token(text="so")),
        message(
            Token(tool_call=ToolCall(index=0, id="a", name="look", arguments="{")),
            Token(tool_call=ToolCall(index=0, arguments="}")),
            Token(tool_call=ToolCall(index=1, id="b", name="find", arguments="{}")),
            Token(json='{"a": 1}'),
            Token(json="2"),
        ),
    )
    assert shown.replace(DIM, "<").replace(PLAIN, ">").splitlines() == [
        "<let me ><see>",
        "It is so",
        "<look ><{><}>",
        "<find ><{}>",
        '{"a": 1}',
        "2",
    ]


def test_text_can_not_command_the_terminal() -> None:
    assert visible("\x1b[2J\x07a\tb\r\nc\x7f\x9b31m\0") == "␛[2J␇a\tb\nc␡�31m␀"
    shown = on_terminal(message(Token(text="\x1b]0;title\x07"), Token(json="\x1b[2J"), Token(reasoning="\x9b2J")))
    assert shown.replace(DIM, "").replace(PLAIN, "").isprintable() is False
    assert "\x1b" not in shown.replace(DIM, "").replace(PLAIN, "")
    assert "\x9b" not in shown


def test_a_pipe_gets_the_text_and_nothing_else() -> None:
    pipe = io.BytesIO()
    printer = TextPrinter(pipe)
    printer.show(message(Token(reasoning="hm"), Token(text="é\x1b"), Token(text=""), Token(json="1")))
    printer.show(message(completion=Completion(finish_reason=FinishReason.STOP.on_wire)))
    printer.close()
    assert pipe.getvalue() == "é\x1b".encode()
    assert printer.left_out == 2


def test_json_is_the_message_of_the_contract() -> None:
    pipe = io.BytesIO()
    completion = Completion(finish_reason=FinishReason.ERROR.on_wire, error_message="broke")
    JsonPrinter(pipe).show(message(Token(text="é\n", attributes={"a": "b"}), completion=completion))
    line, rest = pipe.getvalue().decode().split("\n")
    assert rest == ""
    assert "é" in line
    assert json.loads(line) == {
        "tokens": [{"text": "é\n", "attributes": {"a": "b"}}],
        "completion": {"finishReason": "FINISH_REASON_ERROR", "errorMessage": "broke"},
        "firstSequence": "3",
        "cursor": "1-4-ab",
        "appendedMs": "7",
    }


@pytest.mark.parametrize("all_fields", [True, False])
def test_json_has_all_fields_only_if_asked(all_fields: bool) -> None:
    assert ("bytes" in json.loads(json_line(StreamInfo(), all_fields=all_fields))) is all_fields
