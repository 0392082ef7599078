"""Whatever is sent, the server answers as its OpenAPI document says, and never with 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bagel_mot import Bagel
from bagel_mot.inference.settings import TASKS, task_settings
from bagel_mot.serving.options import ServerOptions
from tests.serving.conftest import Live, running

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = {
    "GET /",
    "GET /version",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/chat/completions",
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "GET /health",
    "GET /ready",
    "GET /metrics",
}


@pytest.fixture(scope="module")
def live(loaded: Bagel) -> Iterator[Live]:
    bagel = Bagel(loaded.checkpoint, defaults=loaded.defaults)
    options = ServerOptions(model_name="tiny", max_body_bytes=1 << 20)
    with running(bagel, options, timesteps=6, new_tokens=16, n=2) as server:
        yield server


@pytest.fixture(scope="module")
def operations(live: Live) -> dict[str, Any]:
    document = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    found = [result.ok() for result in document.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_all_routes_are_described(operations: dict[str, Any]) -> None:
    assert set(operations) == OPERATIONS


def try_out(operation: Any, mode: GenerationMode, examples: int) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case) -> None:
        response = case.call(timeout=60)
        assert response.status_code < 500, response.text
        if response.status_code >= 400 and case.method == "POST":
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        case.validate_response(response, checks=CHECKS)

    check()


@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_no_input_makes_the_server_fail(operations: dict[str, Any], label: str) -> None:
    try_out(operations[label], GenerationMode.POSITIVE, 12 if label.startswith("POST") else 3)
    if label.startswith("POST"):
        try_out(operations[label], GenerationMode.NEGATIVE, 12)


@pytest.mark.slow
@pytest.mark.parametrize("label", sorted(name for name in OPERATIONS if name.startswith("POST")))
def test_hardly_any_input_makes_the_server_fail(operations: dict[str, Any], label: str) -> None:
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        try_out(operations[label], mode, 120)


def test_the_examples_of_the_document_work(live: Live) -> None:
    paths = live.get("/openapi.json").json()["paths"]
    tried = 0
    for path, methods in paths.items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            answer = live.post(path, example["value"])
            assert answer.status_code == 200, answer.text
            tried += 1
    assert tried == 3


def test_the_document_lists_every_setting_with_its_range(live: Live) -> None:
    document = live.get("/openapi.json").json()
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    draw = document["components"]["schemas"]["GenerationRequest"]["properties"]
    form = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    for task in TASKS:
        for setting in task_settings(task):
            assert setting.name in chat
            assert task != "generate" or setting.name in draw
            assert task != "edit" or setting.name in form["properties"]
    scale = draw["cfg_text_scale"]
    assert scale["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 20}
    assert "Default: 4" in scale["description"]
    assert "max_new_tokens" not in draw
