"""The OpenAPI document: valid, complete, and true of the gateway that serves it, as a foreign fuzzer sees it."""

import asyncio
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate

from llmbridge.gateway.table import RULES
from tests.support.running_gateway import RunningGateway

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = 6
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "http.md"


async def test_it_is_valid_and_has_every_call(gateway: RunningGateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    validate(document)
    assert document["openapi"] == "3.1.0"
    listed = [operation for path in document["paths"].values() for operation in path.values()]
    names = {re.sub(r"_\d+$", "", one["operationId"]) for one in listed}
    assert {f"{rule.service}_{rule.call}" for rule in RULES} <= names
    for path in ("/streams/start", "/api/streams/token", "/chat/start", "/api/streams/health"):
        assert path in document["paths"]


async def test_it_says_what_the_contract_says(gateway: RunningGateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    produce = document["paths"]["/v1/sessions/{sessionId}/models/{modelId}/responses/{responseId}:produce"]["post"]
    assert produce["summary"].startswith("Appends tokens, or the completion")
    body = produce["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"tokens", "completion", "firstSequence", "producerEpoch", "producerId"}
    token = document["components"]["schemas"]["Token"]
    assert token["properties"]["timestampMs"]["type"] == "string"
    assert "ms since the Unix epoch" in token["properties"]["timestampMs"]["description"]
    assert all("description" in schema for schema in document["components"]["schemas"].values())


@pytest.mark.timeout(180)
async def test_a_fuzzer_finds_no_answer_that_it_does_not_describe(gateway: RunningGateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    failures = await asyncio.to_thread(_fuzz, document, gateway.url)
    assert failures == []


def _fuzz(document: dict[str, Any], url: str) -> list[str]:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    failures = []
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Any) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(checks=checks)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ask()
        except Exception as error:
            failures.append(f"{operation.label}: {error}")
    assert tried >= len(RULES) * EXAMPLES / 2
    return failures


def _addresses(text: str) -> set[tuple[str, str]]:
    """The addresses in the tables of docs/http.md, written out."""
    stream = "/v1/sessions/{sessionId}/models/{modelId}"
    streams = (f"{stream}/responses/{{responseId}}", stream)
    _, _, older = text.partition("### Older addresses")
    found = set()
    for verb, path in re.findall(r"^\| `(GET|POST|PUT|DELETE) (\S+)` \|", text, re.MULTILINE):
        logs: tuple[str, ...] = ("",)
        if path.startswith(("{log}", "{stream}")):
            logs = streams if path.startswith("{stream}") else (*streams, "/v1/lifecycle")
        found |= {(verb, log + path.removeprefix("{log}").removeprefix("{stream}")) for log in logs}
        if f"`{verb} {path}`" in older:
            found.add((verb, f"/api{path}"))
    return found


async def test_the_documentation_lists_every_address(gateway: RunningGateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    served = {(verb.upper(), path) for path, operations in document["paths"].items() for verb in operations}
    rest, _, _ = DOCUMENTATION.read_text().partition("## Server-Sent Events")
    assert _addresses(rest) == served
