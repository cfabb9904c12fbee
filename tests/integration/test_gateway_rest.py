"""Every unary call over HTTP: what goes in, what comes out, how what fails is told; all as with grpc-gateway."""

from typing import Any

import grpc
import httpx
import pytest

from llmbridge.gateway.rest import operations
from llmbridge.gateway.table import RULES, SERVICES
from llmbridge.v1 import (
    bridge_service_pb2,
    connection_service_pb2,
    group_service_pb2,
    lifecycle_service_pb2,
    stream_admin_service_pb2,
)
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from tests.support.calls import STOP, attached, produce, ref
from tests.support.group_calls import EXPLICIT, membership
from tests.support.running_bridge import RunningBridge
from tests.support.running_gateway import RunningGateway

STREAM = "/v1/sessions/s/models/m/responses/r"


def told(answer: httpx.Response) -> tuple[int, int, str, dict[str, str]]:
    """An error's status, code, reason and metadata."""
    body = answer.json()
    assert set(body) == {"code", "message", "details"}
    info = next(one for one in body["details"] if one["@type"] == "type.googleapis.com/google.rpc.ErrorInfo")
    assert info["domain"] == "llmbridge"
    return answer.status_code, body["code"], info["reason"].removeprefix("ERROR_REASON_"), info["metadata"]


def test_every_unary_call_has_a_place() -> None:
    files = (
        bridge_service_pb2,
        stream_admin_service_pb2,
        group_service_pb2,
        connection_service_pb2,
        lifecycle_service_pb2,
    )
    unary = {
        (service.name, method.name)
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.server_streaming and not method.client_streaming
    }
    assert {(rule.service, rule.call) for rule in RULES} == unary
    assert {service for service, _ in unary} == set(SERVICES)


async def test_no_two_calls_share_an_address(gateway: RunningGateway) -> None:
    from llmbridge.gateway.counts import Counts

    made = operations(gateway.core, Counts())
    assert len({(one.verb, one.path) for one in made}) == len({one.name for one in made}) == len(made)


async def test_produce_retry_cancel_and_the_state(http: httpx.AsyncClient) -> None:
    request = {"tokens": [{"text": "a", "role": "ROLE_USER", "timestampMs": "5"}, {"text": "b"}], "firstSequence": "1"}
    first = (await http.post(f"{STREAM}:produce", json=request)).json()
    assert (first["lastSequence"], first["duplicate"]) == ("2", False)
    again = (await http.post(f"{STREAM}:produce", json=request)).json()
    assert again == {**first, "duplicate": True}
    alive = await http.post(f"{STREAM}:keepAlive", json={})
    assert alive.json() == {"producerLostMs": "120000"}
    cancelled = (await http.post(f"{STREAM}:cancel", json={"reason": "enough"})).json()
    assert cancelled["finishReason"] == "FINISH_REASON_CANCELLED"
    assert (cancelled["sealer"], cancelled["sealedNow"], cancelled["lastSequence"]) == ("SEALER_CANCEL", True, "3")
    info = (await http.get(STREAM)).json()["info"]
    assert info["stream"] == {"sessionId": "s", "modelId": "m", "responseId": "r"}
    # As grpc-gateway: also what has its default, and 64-bit numbers as text.
    assert (info["state"], info["producerEpoch"], info["cursor"]) == ("STREAM_STATE_SEALED", "0", cancelled["cursor"])


async def test_both_spellings_and_numbers_as_numbers_are_taken(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    request = {"tokens": [{"tool_call": {"id": "1", "name": "f"}, "timestamp_ms": 7}], "first_sequence": 1}
    assert (await http.post(f"{STREAM}:produce", json=request)).status_code == 200
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=ref("r")))
    token = (await call.read()).tokens[0]
    assert (token.tool_call.name, token.timestamp_ms) == ("f", 7)
    call.cancel()


@pytest.mark.parametrize("name", ["a/b", "%2F", "a:produce", "ü ?#&=", "..", ".", "a+b", ";x"])
async def test_any_name_can_be_in_a_path(http: httpx.AsyncClient, bridge: RunningBridge, name: str) -> None:
    from urllib.parse import quote

    at = "/v1/sessions/{0}/models/{0}/responses/{0}".format(quote(name, safe="").replace(".", "%2E"))
    url = httpx.URL(str(http.base_url)).copy_with(raw_path=f"{at}:produce".encode())
    answer = await http.post(url, json={"tokens": [{"text": "x"}]})
    assert answer.status_code == 200, answer.text
    info = await bridge.admin.GetStream(stream_admin_service_pb2.GetStreamRequest(stream=ref(name, name, name)))
    assert info.info.last_sequence == 1


async def test_a_stream_without_a_response_id_has_an_address_of_its_own(
    http: httpx.AsyncClient, bridge: RunningBridge
) -> None:
    await http.post(
        "/v1/sessions/s/models/m:produce", json={"tokens": [{"text": "x"}], "completion": {"finishReason": 1}}
    )
    info = (await http.get("/v1/sessions/s/models/m")).json()["info"]
    assert (info["stream"]["responseId"], info["finishReason"]) == ("", "FINISH_REASON_STOP")
    assert (await http.delete("/v1/sessions/s/models/m")).json() == {}
    assert told(await http.get("/v1/sessions/s/models/m"))[:3] == (404, 5, "STREAM_NOT_FOUND")


async def test_create_list_trim_and_delete(http: httpx.AsyncClient) -> None:
    created = (await http.post("/v1/streams", json={"stream": {"sessionId": "s", "modelId": "m"}})).json()
    name = created["stream"]["responseId"]
    assert name
    stream = f"/v1/sessions/s/models/m/responses/{name}"
    for text in ("a", "b", "c"):
        await http.post(f"{stream}:produce", json={"tokens": [{"text": text}]})
    await http.post(f"{STREAM}:produce", json={"tokens": [{"text": "x"}]})
    page = (await http.get("/v1/sessions/s/streams", params={"pageSize": 1})).json()
    assert [one["stream"]["responseId"] for one in page["streams"]] == ["r"]
    rest = (await http.get("/v1/sessions/s/streams", params={"page_token": page["nextPageToken"]})).json()
    assert [one["stream"]["responseId"] for one in rest["streams"]] == [name]
    assert len((await http.get("/v1/openStreams")).json()["streams"]) == 2
    trimmed = (await http.post(f"{stream}:trim", json={"keepTokens": 1})).json()
    assert trimmed == {"firstSequence": "3", "entriesDropped": "3"} or int(trimmed["firstSequence"]) == 3
    assert told(await http.post("/v1/streams", json={"stream": created["stream"]}))[:3] == (409, 6, "STREAM_EXISTS")
    assert (await http.delete(stream)).status_code == 200


async def test_groups_from_a_delivery_to_a_dead_letter_and_back(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    await produce(bridge.bridge, ref("r"), "b", first=2)
    call = await attached(bridge.bridge, membership(ref("r"), acknowledgement=EXPLICIT))
    ack_ids: list[str] = []
    while len(ack_ids) < 2:
        ack_ids += (await call.read()).ack_ids
    group = f"{STREAM}/groups/g"
    extended = await http.post(f"{group}:extendDeadline", json={"ackIds": ack_ids})
    assert extended.json() == {"results": ["SETTLE_RESULT_DONE"] * 2}
    done = await http.post(f"{group}:acknowledge", json={"ackIds": ack_ids[:1]})
    assert done.json() == {"results": ["SETTLE_RESULT_DONE"]}
    rejected = await http.post(
        f"{group}:reject", json={"ackIds": ack_ids[1:], "disposition": "DISPOSITION_DEAD_LETTER", "reason": "broken"}
    )
    assert rejected.json() == {"results": ["SETTLE_RESULT_DONE"]}
    assert (await http.get(group)).json()["info"]["pending"] == "0"
    assert [one["name"] for one in (await http.get(f"{STREAM}/groups")).json()["groups"]] == ["g"]
    assert len((await http.get(f"{group}/consumers")).json()["consumers"]) == 1
    for path in ("/v1/deadLetters", f"{STREAM}/deadLetters"):
        letters = (await http.get(path)).json()["deadLetters"]
        assert [(one["reason"], one["group"]["name"]) for one in letters] == [("broken", "g")]
    redriven = await http.post("/v1/deadLetters:redrive", json={"ids": [letters[0]["id"]]})
    assert redriven.json() == {"results": ["REDRIVE_RESULT_DONE"]}
    gone = await http.post("/v1/deadLetters:delete", json={"ids": [letters[0]["id"]]})
    assert gone.json() == {"deleted": 0}
    call.cancel()
    assert (await http.delete(group)).status_code == 200
    assert told(await http.get(group))[:3] == (404, 5, "GROUP_NOT_FOUND")


async def test_the_lifecycle_feeds_groups_have_addresses_too(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    assert (await http.get("/v1/lifecycle/groups")).json() == {"groups": []}
    assert told(await http.get("/v1/lifecycle/groups/none"))[:3] == (404, 5, "GROUP_NOT_FOUND")
    assert (await http.get("/v1/lifecycle/groups/none/consumers")).status_code == 404
    assert (await http.delete("/v1/lifecycle/groups/none")).status_code == 404
    assert told(await http.post("/v1/lifecycle/groups/g:acknowledge", json={"ackIds": ["x"]}))[2] == "INVALID_FIELD"


async def test_connections_are_listed_counted_and_ended(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    call = await attached(bridge.bridge, SubscribeRequest(stream=ref("r")))
    [found] = (await http.get("/v1/connections", params={"sessionId": "s"})).json()["connections"]
    assert (found["transport"], found["stream"]["responseId"]) == ("TRANSPORT_GRPC", "r")
    assert (await http.get("/v1/connections", params={"sessionId": "other"})).json()["connections"] == []
    assert (await http.get("/v1/connections:count")).json()["total"] == 1
    assert (await http.delete(f"/v1/connections/{found['id']}")).json() == {}
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.ABORTED
    assert told(await http.delete(f"/v1/connections/{found['id']}"))[:3] == (404, 5, "CONNECTION_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "reason", "metadata"),
    [
        (":produce", {"firstSequence": 9}, 409, 10, "SEQUENCE_GAP", {"expected": "3", "received": "9"}),
        (":produce", {"firstSequence": 1}, 400, 9, "SEQUENCE_CONFLICT", {"sequence": "1"}),
        (":produce", {"tokens": [{"json": "{"}]}, 400, 3, "INVALID_FIELD", {"field": "tokens[0].json"}),
        (":produce", {"tokens": [{"text": "x" * 70_000}]}, 429, 8, "LIMIT_EXCEEDED", {"limit": "max_token_bytes"}),
        (":trim", {"throughCursor": "1-1-00000000"}, 400, 11, "RESTARTED", {}),
    ],
)
async def test_the_bridges_errors_keep_their_reason(
    http: httpx.AsyncClient, path: str, body: Any, status: int, code: int, reason: str, metadata: dict[str, str]
) -> None:
    for sequence, text in enumerate("ab", 1):
        await http.post(f"{STREAM}:produce", json={"tokens": [{"text": text}], "firstSequence": sequence})
    request = body if path == ":trim" else {"tokens": [{"text": "?"}], **body}
    answer = told(await http.post(STREAM + path, json=request))
    assert answer[:3] == (status, code, reason)
    assert metadata.items() <= answer[3].items()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"foo": 1}, "foo"),
        ({"stream": {"sessionId": "other"}}, "stream"),
        ({"tokens": {}}, "tokens"),
        ({"tokens": [{"text": 5}]}, "tokens[0].text"),
        ({"tokens": [{"text": "a"}, {"text": "b", "x": 1}]}, "tokens[1].x"),
        ({"tokens": [{"text": "a", "json": "1"}]}, "tokens[0]"),
        ({"tokens": [None]}, "tokens[0]"),
        ({"tokens": [7]}, "tokens[0]"),
        ({"tokens": [{"role": "NOBODY"}]}, "tokens[0].role"),
        ({"tokens": [{"attributes": {"a": 1}}]}, "tokens[0].attributes"),
        ({"tokens": [{"toolCall": {"index": -1}}]}, "tokens[0].toolCall.index"),
        ({"tokens": [{"toolCall": []}]}, "tokens[0].toolCall"),
        ({"firstSequence": "x"}, "firstSequence"),
        ({"firstSequence": 1.5}, "firstSequence"),
        ({"first_sequence": True}, "first_sequence"),
        ({"firstSequence": 1, "first_sequence": 2}, "first_sequence"),
        ({"completion": {"usage": {"promptTokens": "-1"}}}, "completion.usage.promptTokens"),
    ],
)
async def test_what_does_not_fit_is_named(http: httpx.AsyncClient, body: Any, field: str) -> None:
    answer = await http.post(f"{STREAM}:produce", json=body)
    assert told(answer) == (400, 3, "INVALID_FIELD", {"field": field})
    assert field in answer.json()["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"producerId": "\xff"}',
        b'{"firstSequence": NaN}',
        b'{"producerId": "\\ud800"}',
        b'{"\\ud800": 1}',
        b"[" * 100_000,
        b'{"firstSequence": ' + b"9" * 10_000 + b"}",
        b"{} {}",
    ],
)
async def test_what_is_no_json_object_is_refused(http: httpx.AsyncClient, content: bytes) -> None:
    answer = await http.post(f"{STREAM}:produce", content=content)
    assert answer.status_code == 400
    assert told(answer)[1:3] in ((3, "MALFORMED_REQUEST"), (3, "INVALID_FIELD"))


async def test_a_field_that_is_there_twice_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{STREAM}:produce", content=b'{"tokens": [{"text": "a", "text": "b"}]}')
    assert told(answer) == (400, 3, "INVALID_FIELD", {"field": "text"})


@pytest.mark.parametrize(
    ("query", "field"),
    [("foo=1", "foo"), ("pageSize=x", "pageSize"), ("pageSize=1&pageSize=2", "pageSize"), ("pageSize=1_0", "pageSize")],
)
async def test_a_query_is_read_as_strictly(http: httpx.AsyncClient, query: str, field: str) -> None:
    assert told(await http.get(f"/v1/sessions/s/streams?{query}")) == (400, 3, "INVALID_FIELD", {"field": field})


async def test_a_post_takes_no_query(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{STREAM}:cancel?reason=x", json={})
    assert told(answer) == (400, 3, "INVALID_FIELD", {"field": "reason"})


async def test_what_is_not_there_and_what_is_not_for_it(http: httpx.AsyncClient) -> None:
    missing = await http.get("/v2/streams")
    assert (missing.status_code, missing.json()["code"]) == (404, 5)
    wrong = await http.put(STREAM)
    assert (wrong.status_code, wrong.json()["code"]) == (405, 12)
    assert "GET" in wrong.headers["allow"]
    bad = await http.get(httpx.URL(str(http.base_url)).copy_with(raw_path=b"/v1/sessions/%ff/streams"))
    assert told(bad) == (400, 3, "INVALID_FIELD", {"field": "path"})


async def test_a_response_is_started_with_all_that_a_page_needs(http: httpx.AsyncClient, bridge: RunningBridge) -> None:
    answer = await http.post("/v1/sessions/a%2Fb/models/m/responses", json={"retentionMs": "60000"})
    body = answer.json()
    assert (body["sessionId"], body["modelId"], body["cursor"]) == ("a/b", "m", "")
    stream = ref(body["responseId"], session="a/b")
    info = (await bridge.admin.GetStream(stream_admin_service_pb2.GetStreamRequest(stream=stream))).info
    assert info.time_to_live_ms <= 60_000
    assert str(info.created_ms) == body["createdMs"]
    assert (await http.get(body["urls"]["self"])).json()["info"]["stream"]["sessionId"] == "a/b"
    assert (await http.post(body["urls"]["produce"], json={"tokens": [{"text": "hi"}]})).status_code == 200
    await produce(bridge.bridge, stream, completion=STOP)
    events = await http.get(body["urls"]["events"])
    assert (events.status_code, "hi" in events.text) == (200, True)
    chunks = await http.get(body["urls"]["openai"])
    assert (chunks.status_code, "[DONE]" in chunks.text) == (200, True)
    named = await http.post("/v1/sessions/s/models/m/responses", json={"responseId": "mine"})
    assert named.json()["responseId"] == "mine"
    assert told(await http.post("/v1/sessions/s/models/m/responses", json={"responseId": "mine"}))[0] == 409
    assert told(await http.post("/v1/sessions/s/models/m/responses", json={"responseID": "x"}))[0] == 400
