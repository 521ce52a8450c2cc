"""The OpenAPI description is complete, and what the server does is what it says (schemathesis)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import Caller, images, serving

from testtime.serve.page import ROUTER
from testtime.serve.server import Limits


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_route_describes_bodies_answers_and_errors(tmp_path: Path) -> None:
    with serving(tmp_path, routers=(ROUTER,)) as call:
        described = call.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    for reference in references(described):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert not {"HTTPValidationError", "ValidationError"} & schemas.keys()
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            where = f"{method} {path}"
            assert route["summary"], where
            assert route["description"], where
            answers = route["responses"]
            if path.startswith("/v2/health"):
                continue
            assert {"400", "401", "403", "408", "413", "429", "503"} <= answers.keys(), where
            assert route["security"], where
            problem = answers["401"]["content"]["application/problem+json"]["schema"]
            assert problem == {"$ref": "#/components/schemas/Problem"}, where
            assert "Retry-After" in answers["429"]["headers"], where
            if method in ("put", "post") and path.split("/")[-1] in (
                "infer",
                "images",
                "rollback",
                "configuration",
            ):
                assert route["requestBody"]["required"], where
                assert "application/json" in route["requestBody"]["content"], where
    assert {"client", "manager"} == described["components"]["securitySchemes"].keys()
    assert {"PNG"} <= {
        kind.upper()[6:]
        for kind in described["paths"]["/streams/{stream}/images"]["post"]["requestBody"]["content"]
    }


def fuzz(call: Caller, examples: int) -> int:
    """Send what schemathesis makes of the description to a server; the number of requests."""
    schemathesis = pytest.importorskip("schemathesis", reason="pip install -e '.[dev]'")
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis import Case
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
        unsupported_method,
    )

    checks = [
        *(not_a_server_error, status_code_conformance, content_type_conformance),
        *(response_schema_conformance, response_headers_conformance, unsupported_method),
    ]
    schema = schemathesis.openapi.from_dict(call.get("/openapi.json").json())
    sent = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        strategy = operation.as_strategy()

        @seed(0)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def test(case: Case) -> None:
            nonlocal sent
            sent += 1
            prepared = case.as_transport_kwargs(base_url="http://127.0.0.1")
            raw = call.runner.run(send(call.http, prepared))
            response = schemathesis.Response.from_any(raw)
            case.validate_response(response, checks=checks)

        test()
    return sent


async def send(http: Any, prepared: dict[str, Any]) -> Any:
    import requests

    made = requests.Request(**{key: value for key, value in prepared.items() if key in REQUEST}).prepare()
    body = made.body.encode() if isinstance(made.body, str) else made.body
    request = http.build_request(made.method, made.url, headers=dict(made.headers), content=body)
    return await http.send(request)


REQUEST = {"method", "url", "headers", "files", "data", "params", "auth", "cookies", "json"}


def test_fuzzed_requests_get_what_the_description_says(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(rate=None), routers=(ROUTER,)) as call:
        call.infer(images(0))
        assert fuzz(call, 3) >= 50
        assert call.infer(images(1)).status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_fuzzed_requests_get_what_the_description_says(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(rate=None), routers=(ROUTER,)) as call:
        call.infer(images(0))
        sent = fuzz(call, 500)
        print(json.dumps({"requests": sent}))
        assert sent >= 5000
        assert call.infer(images(1), stream="after").status_code == 200
