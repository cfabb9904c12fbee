"""What the documents name is there: files, headings, settings, commands and their options."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup

from llmbridge.cli.app import COMMANDS
from llmbridge.settings import Settings
from llmbridge.v1.error_reason_pb2 import ErrorReason

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# The command line's own, which is no setting of a bridge.
ADDRESS = "LLMBRIDGE_ADDRESS"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def prose(document: Path) -> str:
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    """What GitHub makes of its headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def commands(document: Path) -> Iterator[list[str]]:
    """The words behind `llmbridge` wherever it is run, in a shell block or within a line."""
    text = document.read_text()
    code = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", prose(document))
    for line in "\n".join(code).splitlines():
        for run in re.findall(r"(?:^|[\s=…])llmbridge +([a-z][^\s|&#;]*(?: +[^\s|&#;]+)*)", line):
            yield run.split()


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@each_document
def test_settings_exist(document: Path) -> None:
    known = {field.validation_alias for field in Settings.model_fields.values()} | {ADDRESS}
    reasons = {name.removeprefix("ERROR_REASON_") for name, _ in ErrorReason.items()}
    named = set(re.findall(r"`((?:LLMBRIDGE|REDIS)_[A-Z_]+)[`=]", document.read_text()))
    assert named - reasons <= known


@each_document
def test_commands_and_their_options_exist(document: Path) -> None:
    for words in commands(document):
        assert words[0] in COMMANDS, words
        command = COMMANDS[words[0]].load()
        if isinstance(command, TyperGroup) and len(words) > 1:
            assert words[1] in command.commands, words
            command = command.commands[words[1]]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_commands_are_found() -> None:
    found = [" ".join(words) for document in DOCUMENTS for words in commands(document)]
    assert "serve --http-port 8080" in found
    assert "dead-letters redrive" in found
    assert len(found) > 30
