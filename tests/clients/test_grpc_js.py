"""gRPC's own package for node, from the protos alone, and what docs/clients.md shows of it, as it stands there."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from llmbridge.v1.bridge_service_pb2 import (
    ProduceManyRequest,
    SubscribeManyRequest,
    SubscribeRequest,
    SubscriptionStart,
    WriterAppend,
    WriterStart,
)
from llmbridge.v1.stream_admin_service_pb2 import TrimStreamRequest
from llmbridge.v1.token_pb2 import Token
from tests.support.calls import STOP, Received, produce, ref
from tests.support.node_client import FOLDER, Line, NodeProgram, installed_packages, node, node_script
from tests.support.proxy import local, proxy_to
from tests.support.running_bridge import RunningBridge

pytestmark = pytest.mark.timeout(300)

PROTOS = FOLDER.parents[2] / "protos"
SECTION = (FOLDER.parents[2] / "docs" / "clients.md").read_text().partition("\n## Node: ")[2].partition("\n## ")[0]
MOST_LINES = 15
OK: Line = {"status": "OK"}
# Reads a stream to its end; then one that is gone.
_READ = """
const names = { sessionId: "s", modelId: "m", responseId: "r" };
const say = (line) => console.log(JSON.stringify(line));
let cursor;
for await (const message of subscribe(names)) {
  say(message);
  cursor = message.cursor;
}
try {
  for await (const message of subscribe({ ...names, responseId: "gone" }, cursor)) say(message);
} catch (error) {
  say(errorInfo(details(error)));
}
bridge.close();
"""


def documented(address: str) -> str:
    """The document's examples, one after the other, with this bridge's address in place of the usual one."""
    examples: list[str] = re.findall(r"```js\n(.*?)```", SECTION, re.DOTALL)
    assert max(example.count("\n") for example in examples) <= MOST_LINES
    code = "".join(examples)
    assert '["protos"]' in code
    assert "127.0.0.1:50051" in code
    return code.replace('"protos"', json.dumps(str(PROTOS))).replace("127.0.0.1:50051", address)


def arguments(message: Message) -> str:
    """A message as the package takes it: with JSON names, its 64-bit numbers as text."""
    return json.dumps(MessageToDict(message))


def has_text(text: str) -> Callable[[Line], bool]:
    """Whether a line is a delivery of a message with this text."""
    return lambda line: {"text": text} in line.get("message", {}).get("tokens", [])


def texts(lines: list[Line]) -> list[str]:
    """The tokens' texts of messages, each at the place that its sequence says."""
    found: list[str] = []
    for line in lines:
        if line["tokens"]:
            assert line["firstSequence"] == len(found) + 1
        found += [token["text"] for token in line["tokens"]]
    return found


def called(bridge: RunningBridge, what: str, request: Message) -> AbstractAsyncContextManager[NodeProgram]:
    """The program makes this one call."""
    installed_packages()
    return node("grpc.mjs", bridge.address, what, arguments(request))


async def said(bridge: RunningBridge, what: str, request: Message) -> list[Line]:
    """All that the call says, to its end."""
    async with called(bridge, what, request) as program:
        return await program.all()


def refusal(status: str, reason: str, **metadata: str) -> Line:
    return {"status": status, "reason": f"ERROR_REASON_{reason}", "domain": "llmbridge", "metadata": metadata}


async def test_reading_from_the_start_and_resuming_by_cursor(bridge: RunningBridge) -> None:
    stream = ref("r")
    await produce(bridge.bridge, stream, "One", first=1)
    async with called(bridge, "read", SubscribeRequest(stream=stream)) as program:
        first = await program.until(lambda line: bool(line.get("tokens")))
    last = await produce(bridge.bridge, stream, ", two", ".", first=2, completion=STOP)
    *messages, end = await said(bridge, "read", SubscribeRequest(stream=stream, after_cursor=first["cursor"]))
    assert texts([first, *messages]) == ["One", ", two", "."]
    assert messages[-1]["completion"] == {"finishReason": "FINISH_REASON_STOP"}
    assert (messages[-1]["cursor"], end) == (last.cursor, OK)


async def test_lost_history_names_the_earliest_cursor(bridge: RunningBridge) -> None:
    stream = ref("r")
    for sequence, text in enumerate(("One", ", two"), start=1):
        await produce(bridge.bridge, stream, text, first=sequence)
    await produce(bridge.bridge, stream, ".", first=3, completion=STOP)
    await bridge.admin.TrimStream(TrimStreamRequest(stream=stream, keep_tokens=1))
    [end] = await said(bridge, "read", SubscribeRequest(stream=stream))
    earliest = end["metadata"]["earliest_cursor"]
    assert end == refusal("OUT_OF_RANGE", "TRIMMED", earliest_cursor=earliest)
    message, end = await said(bridge, "read", SubscribeRequest(stream=stream, after_cursor=earliest))
    assert (message["firstSequence"], message["tokens"], end) == (3, [{"text": "."}], OK)


async def test_one_refused_append_among_good_ones(bridge: RunningBridge) -> None:
    good, bad = ref("good"), ref("bad")
    hello = [Token(text="Hello")]
    request = ProduceManyRequest(
        starts=[WriterStart(writer=1, stream=good), WriterStart(writer=2, stream=bad)],
        appends=[
            WriterAppend(writer=1, append_id=1, first_sequence=1, tokens=hello),
            WriterAppend(writer=2, append_id=2, first_sequence=5, tokens=hello),
            # The largest number that JavaScript counts to.
            WriterAppend(writer=1, append_id=2**53 - 1, first_sequence=2, completion=STOP),
        ],
    )
    *receipts, end = await said(bridge, "produceMany", request)
    assert end == OK
    received = await Received().read(bridge.bridge.Subscribe(SubscribeRequest(stream=good)))
    assert received.text == "Hello"
    by_id = {receipt["appendId"]: receipt for receipt in receipts}
    assert by_id.keys() == {1, 2, 2**53 - 1}
    assert by_id[1]["lastSequence"] == 1
    assert by_id[2] == {"appendId": 2, "failure": refusal("ABORTED", "SEQUENCE_GAP", expected="1", received="5")}
    assert by_id[2**53 - 1] == {"appendId": 2**53 - 1, "lastSequence": 2, "cursor": received.cursor}


async def test_one_of_two_subscriptions_fails(bridge: RunningBridge) -> None:
    """The other one goes on by the credit it gives back, counted as this package encodes what it has decoded."""
    stream = ref("r")
    gone = await produce(bridge.bridge, stream, "One", first=1)
    request = SubscribeManyRequest(
        starts=[
            SubscriptionStart(subscription=1, request=SubscribeRequest(stream=stream), credit_bytes=1),
            SubscriptionStart(subscription=2, request=SubscribeRequest(stream=ref("r2"), after_cursor=gone.cursor)),
        ]
    )
    async with called(bridge, "subscribeMany", request) as program:
        await program.until(has_text("One"))
        await produce(bridge.bridge, stream, ", two", first=2)
        await program.until(has_text(", two"))
        await produce(bridge.bridge, stream, ".", first=3, completion=STOP)
        *deliveries, end = await program.all()
    assert end == OK
    ends = [line for line in deliveries if "end" in line]
    assert ends == [{"subscriptions": [2], "end": refusal("OUT_OF_RANGE", "EXPIRED", earliest_cursor="")}]
    assert texts([line["message"] for line in deliveries if "message" in line]) == ["One", ", two", "."]


async def test_the_documents_reader_through_a_cut(bridge: RunningBridge) -> None:
    installed_packages()
    stream = ref("r")
    await produce(bridge.bridge, stream, "One", first=1)
    async with proxy_to(local(int(bridge.address.rpartition(":")[2]))) as network:
        async with node_script(documented(f"127.0.0.1:{network.port}") + _READ) as program:
            await program.until(lambda line: bool(line.get("tokens")))
            network.reset_all()
            await produce(bridge.bridge, stream, ", two", ".", first=2, completion=STOP)
            *messages, refused = await program.all()
        assert network.accepted > 1
    assert texts(messages) == ["One", ", two", "."]
    assert messages[-1]["completion"] == {"finishReason": "FINISH_REASON_STOP"}
    assert refused == {"reason": "ERROR_REASON_EXPIRED", "metadata": {"earliest_cursor": ""}}
