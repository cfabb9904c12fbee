"""The client's small parts: values, addresses, waits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbridge.client import Completion, FinishReason, Message, Position, RetryPolicy, Sealer, StreamName, Token
from llmbridge.client.connection import grpc_target
from llmbridge.client.retry import Backoff
from llmbridge.client.values import name_of, stream_name, stream_ref
from llmbridge.v1 import bridge_service_pb2, stream_pb2, token_pb2


def test_enums_are_the_contracts() -> None:
    for ours, theirs, prefix in (
        (FinishReason, token_pb2.FinishReason, "FINISH_REASON_"),
        (Sealer, stream_pb2.Sealer, "SEALER_"),
        (Position, bridge_service_pb2.Position, "POSITION_"),
    ):
        on_wire = {name.removeprefix(prefix): number for name, number in theirs.items()}
        if ours is Position:
            del on_wire["UNSPECIFIED"]
        assert {member.name: member.value for member in ours} == on_wire


def test_a_finish_reason_of_a_newer_bridge_is_unspecified() -> None:
    completion = Completion.FromString(b"\x08\x63")
    assert FinishReason.of(completion) is FinishReason.UNSPECIFIED
    assert FinishReason.of(Completion(finish_reason=token_pb2.FINISH_REASON_LENGTH)) is FinishReason.LENGTH


def test_a_message_counts_its_completion() -> None:
    tokens = (Token(text="a"), Token(reasoning="hm"), Token(text="b"))
    message = Message(tokens, 5, "c", None, 1)
    assert (message.last_sequence, message.text, message.finish_reason) == (7, "ab", None)
    end = Message((), 8, "d", Completion(finish_reason=token_pb2.FINISH_REASON_STOP), 1)
    assert (end.last_sequence, end.finish_reason) == (8, FinishReason.STOP)


def test_names_in_both_forms() -> None:
    name = StreamName("s", "m", "r")
    assert stream_name("s", "m", "r") == stream_name(name, "", "") == name_of(stream_ref(name)) == name
    with pytest.raises(TypeError):
        stream_name(name, "m", "")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("bridge.example:50051", "bridge.example:50051"),
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
        ("dns:///bridge:1", "dns:///bridge:1"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("unix:/run/llmbridge.sock", "unix:/run/llmbridge.sock"),
    ],
)
def test_addresses(address: str, target: str) -> None:
    assert grpc_target(address) == target


@pytest.mark.parametrize("address", ["a:1,b:2", "10.0.0.1:1,[::1]:2", "10.0.0.1:1,", "10.0.0.1,10.0.0.2"])
def test_several_addresses_that_grpc_would_not_take(address: str) -> None:
    with pytest.raises(ValueError, match="addresses"):
        grpc_target(address)


@given(
    st.floats(0.001, 10),
    st.floats(1, 10),
    st.floats(1, 10),
    st.lists(st.floats(0, 20), max_size=20),
    st.floats(0, 1),
)
def test_waits_grow_within_bounds(
    first: float, factor: float, multiplier: float, minimums: list[float], chance: float
) -> None:
    policy = RetryPolicy(first_delay=first, longest_delay=first * factor, multiplier=multiplier)
    backoff = Backoff(policy, lambda low, high: low + (high - low) * chance)
    for attempt, minimum in enumerate(minimums):
        full = min(first * multiplier**attempt, policy.longest_delay)
        delay = backoff.next_delay(minimum)
        assert delay >= minimum
        assert delay >= full / 2 or math.isclose(delay, full / 2)
        most = max(minimum, full / 2) + max(minimum, full) / 2
        assert delay <= most or math.isclose(delay, most)
    backoff.reset()
    assert first / 2 <= backoff.next_delay() <= first


def test_waits_differ() -> None:
    assert len({Backoff(RetryPolicy()).next_delay() for _ in range(20)}) > 1


def test_waits_that_the_bridge_asks_all_for_differ_as_much() -> None:
    policy = RetryPolicy(first_delay=0.05)
    shortest, longest = (Backoff(policy, choose).next_delay(0.5) for choose in (min, max))
    assert (shortest, longest) == (0.5, 0.75)


@pytest.mark.parametrize(
    "values",
    [
        {"first_delay": 0.0},
        {"first_delay": 5.0, "longest_delay": 1.0},
        {"multiplier": 0.5},
        {"attempt_timeout": 0.0},
        {"give_up_after": 0.0},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**values)
