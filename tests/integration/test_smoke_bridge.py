from llmbridge.v1.bridge_service_pb2 import ProduceRequest, SubscribeRequest
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, Completion, Token
from tests.support.running_bridge import RunningBridge


async def test_a_token_goes_through(bridge: RunningBridge) -> None:
    stream = StreamRef(session_id="s", model_id="m")
    done = Completion(finish_reason=FINISH_REASON_STOP)
    await bridge.bridge.Produce(
        ProduceRequest(stream=stream, tokens=[Token(text="hi")], first_sequence=1, completion=done)
    )
    messages = [message async for message in bridge.bridge.Subscribe(SubscribeRequest(stream=stream))]
    assert [token.text for message in messages for token in message.tokens] == ["hi"]
    assert messages[-1].completion == done
