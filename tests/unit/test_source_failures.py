"""What readers are told when a source failed: something for people, and nothing that was said in confidence."""

import pytest

from llmbridge.client.adapters.failures import SourceError, explain, in_one_line


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Incorrect API key provided: sk-proj-ab12****wxyz.", "Incorrect API key provided: [removed]"),
        ("header 'Authorization: Bearer abcdef'", "header 'Authorization: Bearer [removed]"),
        ("GET https://user:pass@host/v1", "GET https://[removed]@host/v1"),
        ("GET https://host/v1?key=abc&b=2 failed", "GET https://host/v1?[removed] failed"),
        ("AIzaSyA1234567890abcdefghij is wrong", "[removed] is wrong"),
        ("token eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", "token [removed]"),
        ("the model claude-sonnet-4-20250514 has a limit of max_tokens", None),
        ("the task-force asks: is it so? yes\n\n and  again", "the task-force asks: is it so? yes and again"),
    ],
)
def test_secrets_are_taken_out_and_words_are_left(said: str, told: str | None) -> None:
    assert in_one_line(said) == (said if told is None else told)


def test_a_message_is_bounded_and_whole_characters() -> None:
    told = in_one_line("é" * 5000)
    assert told == "é" * 512


def test_halves_of_characters_are_no_trouble() -> None:
    assert in_one_line("a\ud83e") == "a?"


def test_errors_of_the_network_are_told_by_their_kind() -> None:
    assert explain(ConnectionResetError("to 10.0.0.1")) == (
        "the connection to the model endpoint broke: ConnectionResetError"
    )


def test_other_errors_are_told_by_their_kind() -> None:
    assert explain(KeyError("hunter2")) == "the source of the response failed: KeyError"
    assert explain(SourceError("asleep")) == "asleep"
