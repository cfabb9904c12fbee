"""Prints what a reader receives: for a terminal, for a pipe, or as JSON. Knows nothing of where it comes from."""

import json
import sys
from typing import BinaryIO, Protocol

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message as ProtoMessage
from rich.console import Console
from rich.text import Text

from llmbridge.client import Message, Token
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse

__all__ = ["JsonPrinter", "Printer", "TerminalPrinter", "TextPrinter", "json_line", "make_printer", "visible"]

# A model's text must not be able to move the cursor or to change the terminal's settings.
_CONTROLS: dict[int, str | None] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"},
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    0x7F: "\u2421",
    # Half of other systems' line ends.
    ord("\r"): None,
}


class Printer(Protocol):
    """Prints messages, each at once."""

    left_out: int
    """How many tokens were not printed, because they are no text."""

    def show(self, message: Message) -> None:
        """Prints a message. BrokenPipeError when nobody reads any more."""

    def close(self) -> None:
        """Leaves the output as whatever comes next would have it."""


def make_printer(*, as_json: bool) -> Printer:
    """The printer for standard output."""
    if as_json:
        return JsonPrinter(sys.stdout.buffer)
    return TerminalPrinter(Console(highlight=False)) if sys.stdout.isatty() else TextPrinter(sys.stdout.buffer)


def json_line(message: ProtoMessage, *, all_fields: bool = False) -> str:
    """A message of the contract in protobuf's JSON form, on one line.

    `all_fields`: also those that have their default.
    """
    return json.dumps(MessageToDict(message, always_print_fields_with_no_presence=all_fields), ensure_ascii=False)


def visible(text: str) -> str:
    """Makes control characters harmless, except tab and new line."""
    return text.translate(_CONTROLS)


class JsonPrinter:
    """One SubscribeResponse a line."""

    left_out = 0

    def __init__(self, output: BinaryIO) -> None:
        self._output = output

    def show(self, message: Message) -> None:
        """See Printer."""
        response = SubscribeResponse(
            tokens=message.tokens,
            completion=message.completion,
            first_sequence=message.first_sequence,
            cursor=message.cursor,
            appended_ms=message.appended_ms,
        )
        self._output.write(f"{json_line(response)}\n".encode())
        self._output.flush()

    def close(self) -> None:
        """See Printer."""


class TextPrinter:
    """Exactly the text of the answer, as UTF-8, and nothing else."""

    def __init__(self, output: BinaryIO) -> None:
        self.left_out = 0
        self._output = output

    def show(self, message: Message) -> None:
        """See Printer."""
        self.left_out += sum(token.WhichOneof("content") != "text" for token in message.tokens)
        self._output.write(message.text.encode())
        self._output.flush()

    def close(self) -> None:
        """See Printer."""


class TerminalPrinter:
    """Everything, told apart: text as it is, reasoning and tool calls dimmed, each kind on lines of its own."""

    left_out = 0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._kind = ""
        self._line_begun = False

    def show(self, message: Message) -> None:
        """See Printer."""
        for token in message.tokens:
            self._show(token)

    def _show(self, token: Token) -> None:
        kind = token.WhichOneof("content") or "text"
        if kind == "tool_call":
            call = token.tool_call
            self._print(f"tool call {call.index}", f"{call.name} " if call.name else "", dimmed=True)
            self._print(f"tool call {call.index}", call.arguments, dimmed=True)
        else:
            self._print(kind, getattr(token, kind), dimmed=kind == "reasoning")
            if kind == "json":
                self._end_line()

    def _print(self, kind: str, text: str, *, dimmed: bool) -> None:
        if not text:
            return
        if kind != self._kind:
            self._end_line()
        self._kind = kind
        text = visible(text)
        if text:
            self._console.print(Text(text, style="dim" if dimmed else "", end=""), end="", soft_wrap=True)
            self._line_begun = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._line_begun:
            self._console.print()
            self._line_begun = False

    def close(self) -> None:
        """See Printer."""
        self._end_line()
