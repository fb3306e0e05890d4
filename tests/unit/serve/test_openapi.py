"""The OpenAPI document says how to send a key, and for which routes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.builders import local_client
from vmr_ray.serve.api import make_api
from vmr_ray.serve.auth import new_key
from vmr_ray.serve.models import ServeArgs


@pytest.fixture
def keyed(tmp_path: Path) -> TestClient:
    """The service with API keys, without one in the requests."""
    new_key("ann", tmp_path / "keys")
    settings = ServeArgs(index=str(tmp_path), auth="keys", key_file=str(tmp_path / "keys"))
    return TestClient(make_api(settings, None))  # type: ignore[arg-type]


def document(client: TestClient) -> dict[str, Any]:
    response = client.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def test_keys_are_declared_where_they_are_needed(keyed: TestClient):
    schema = document(keyed)
    schemes = schema["components"]["securitySchemes"]
    assert {(s["type"], s.get("scheme"), s.get("in"), s.get("name")) for s in schemes.values()} == {
        ("http", "bearer", None, None),
        ("apiKey", None, "header", "X-API-Key"),
    }
    either = [{name: []} for name in schemes]
    open_paths = set()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if path in ("/healthz", "/readyz"):
                assert "security" not in operation
                open_paths.add(path)
                continue
            assert operation["security"] == either, path
            refused = keyed.request(method, path.format(video_id="a", job_id="b"))
            assert refused.status_code == 401, path
    assert open_paths == {"/healthz", "/readyz"}
    assert document(keyed) == schema  # asked twice


def test_the_documentation_needs_no_key_and_nothing_of_other_hosts(keyed: TestClient):
    page = keyed.get("/docs")
    assert page.status_code == 200 and "/openapi.json" in page.text
    for path, operations in document(keyed)["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    assert "min_score" in page.text and "list of string" in page.text and "X-API-Key" in page.text
    assert not re.search(r"<script|src=|http://|https://", page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert keyed.get("/redoc").status_code in (401, 404)


def test_without_keys_none_are_declared(tmp_path: Path):
    api = make_api(ServeArgs(index=str(tmp_path), auth="none"), None)  # type: ignore[arg-type]
    schema = document(local_client(api))
    assert "securitySchemes" not in schema["components"]
    assert not any("security" in o for operations in schema["paths"].values() for o in operations.values())


def test_operations_are_named_for_generated_clients(keyed: TestClient):
    schema = document(keyed)
    names = [o["operationId"] for operations in schema["paths"].values() for o in operations.values()]
    assert len(set(names)) == len(names) == 14
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) and len(name) < 20 for name in names), names


def test_what_may_be_added_is_declared(keyed: TestClient):
    schema = document(keyed)
    content = schema["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "video/*"}
    reference = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert set(schema["components"]["schemas"][reference]["properties"]) == {"uri", "video_id", "metadata"}


def test_a_query_is_declared_as_not_empty(keyed: TestClient):
    query = document(keyed)["components"]["schemas"]["SearchBody"]["properties"]["query"]
    assert query["type"] == "string" and query["minLength"] == 1
