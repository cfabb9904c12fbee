"""Frames from a page: what is understood, and which field is named where it is not."""

import json

import pytest

from llmbridge.gateway.places import Start
from llmbridge.gateway.websocket_frames import BadFrame, Cancel, Ping, Subscribe, Unsubscribe, read_frame
from llmbridge.v1.bridge_service_pb2 import POSITION_LATEST
from llmbridge.v1.stream_pb2 import StreamRef

SUBSCRIBE = {"type": "subscribe", "id": "a", "sessionId": "s", "modelId": "m"}


def test_frames_that_are_understood() -> None:
    assert read_frame(json.dumps(SUBSCRIBE)) == Subscribe("a", StreamRef(session_id="s", model_id="m"), Start())
    full = SUBSCRIBE | {"responseId": "r", "cursor": "1-2-3", "position": "latest"}
    stream = StreamRef(session_id="s", model_id="m", response_id="r")
    assert read_frame(json.dumps(full)) == Subscribe("a", stream, Start("1-2-3", POSITION_LATEST))
    assert read_frame(json.dumps(SUBSCRIBE | {"cursor": "end"})) == Subscribe(
        "a", StreamRef(session_id="s", model_id="m"), None
    )
    assert read_frame('{"type":"unsubscribe","id":"a"}') == Unsubscribe("a")
    assert read_frame('{"type":"cancel","id":"a","reason":"why"}') == Cancel("a", "why")
    assert read_frame('{"type":"ping"}') == Ping("")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "frame"),
        ("[]", "frame"),
        ("nonsense", "frame"),
        ("[" * 60_000, "frame"),
        ("{}", "type"),
        ('{"type":1}', "type"),
        ('{"type":"subscribed"}', "type"),
        ('{"type":"subscribe","sessionId":"s","modelId":"m"}', "id"),
        (json.dumps(SUBSCRIBE | {"id": 1}), "id"),
        (json.dumps(SUBSCRIBE | {"id": "x" * 129}), "id"),
        (json.dumps(SUBSCRIBE | {"sessionId": ""}), "sessionId"),
        (json.dumps(SUBSCRIBE | {"modelId": None}), "modelId"),
        (json.dumps(SUBSCRIBE | {"responseId": ["r"]}), "responseId"),
        (json.dumps(SUBSCRIBE | {"responseid": "r"}), "responseid"),
        (json.dumps(SUBSCRIBE | {"modelId": "\ud800"}), "modelId"),
        (json.dumps(SUBSCRIBE | {"position": "middle"}), "position"),
        (json.dumps(SUBSCRIBE | {"cursor": "a b"}), "cursor"),
        ('{"type":"unsubscribe","id":"a","cursor":"x"}', "cursor"),
        ('{"type":"ping","id":{}}', "id"),
        ('{"type":"ping","id":"a","id":"b"}', "id"),
        ('{"type":"ping","id":"\\ud800"}', "id"),
        ('{"type":"ping","\\ud800":"a"}', "?"),
    ],
)
def test_a_bad_frame_names_its_field(text: str, field: str) -> None:
    with pytest.raises(BadFrame) as caught:
        read_frame(text)
    [info] = caught.value.problem.details
    assert info["metadata"] == {"field": field}
    assert caught.value.problem.message.startswith(f"{field}: ")


def test_a_bad_frame_is_told_to_its_subscription() -> None:
    with pytest.raises(BadFrame) as caught:
        read_frame(json.dumps(SUBSCRIBE | {"x": "y"}))
    assert caught.value.id == "a"
