"""Tools that nobody here wrote: grpcurl and grpc_health_probe against a bridge. `make tools` installs them."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.support.running_bridge import RunningBridge

TOOLS = Path(__file__).resolve().parents[2] / ".tools" / "bin"


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(TOOLS))
    if found is None:
        pytest.skip(f"{name} is not installed: make tools")
    return found


async def _run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode is not None
    return process.returncode, output.decode()


def _field(answer: str, name: str) -> str:
    fields: dict[str, str] = json.loads(answer)
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return fields.get(name) or fields[snake]


async def test_grpcurl_sees_health_come_and_go(bridge: RunningBridge) -> None:
    check = (_tool("grpcurl"), "-plaintext", bridge.address, "grpc.health.v1.Health/Check")
    assert '"SERVING"' in (await _run(*check))[1]
    await bridge.core._health.set_serving(False)
    assert '"NOT_SERVING"' in (await _run(*check))[1]


async def test_grpcurl_finds_writes_and_reads_by_reflection_alone(bridge: RunningBridge) -> None:
    grpcurl = _tool("grpcurl")
    stream = {"session_id": "s", "model_id": "m"}
    call = (grpcurl, "-plaintext", "-d")

    code, services = await _run(grpcurl, "-plaintext", bridge.address, "list")
    assert code == 0
    assert {"llmbridge.v1.BridgeService", "llmbridge.v1.StreamAdminService"} <= set(services.split())

    produce = {
        "stream": stream,
        "tokens": [{"text": "Hel"}, {"text": "lo"}],
        "first_sequence": 1,
        "completion": {"finish_reason": "FINISH_REASON_STOP"},
    }
    code, answer = await _run(*call, json.dumps(produce), bridge.address, "llmbridge.v1.BridgeService/Produce")
    assert (code, _field(answer, "lastSequence")) == (0, "3")

    code, answer = await _run(
        *call, json.dumps({"stream": stream}), bridge.address, "llmbridge.v1.BridgeService/Subscribe"
    )
    message = json.loads(answer)
    assert code == 0
    assert "".join(token["text"] for token in message["tokens"]) == "Hello"
    assert "FINISH_REASON_STOP" in message["completion"].values()

    code, answer = await _run(
        *call, json.dumps(produce | {"first_sequence": 9}), bridge.address, "llmbridge.v1.BridgeService/Produce"
    )
    assert code != 0
    assert "FailedPrecondition" in answer
    assert "ERROR_REASON_COMPLETED" in answer


@pytest.mark.parametrize("service", ["", "llmbridge.v1.BridgeService", "llmbridge.v1.StreamAdminService"])
async def test_grpc_health_probe_passes_and_fails_when_it_should(bridge: RunningBridge, service: str) -> None:
    probe = (_tool("grpc_health_probe"), f"-addr={bridge.address}", f"-service={service}")
    assert (await _run(*probe))[0] == 0
    await bridge.core._health.set_serving(False)
    assert (await _run(*probe))[0] != 0


async def test_grpc_health_probe_fails_for_a_service_that_is_not_there(bridge: RunningBridge) -> None:
    assert (await _run(_tool("grpc_health_probe"), f"-addr={bridge.address}", "-service=nothing"))[0] != 0
