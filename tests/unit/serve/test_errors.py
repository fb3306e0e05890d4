"""Every error is answered in one form, and internal ones show nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import local_client
from vmr_ray.errors import VmrError
from vmr_ray.serve.api import make_api
from vmr_ray.serve.errors import UnavailableError, validation_message
from vmr_ray.serve.models import ServeArgs


class FailingBackend:
    def __init__(self, error: Exception):
        self.error = error

    async def search(self, request: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (VmrError("there is no index"), 400, "there is no index"),
        (UnavailableError(), 503, "busy: try again in a second"),
        (RuntimeError("/secret/path"), 500, "internal error: see the service's log"),
    ],
)
def test_an_error_becomes_an_answer(error: Exception, status: int, message: str):
    api = make_api(ServeArgs(index="none", auth="none"), FailingBackend(error))  # type: ignore[arg-type]
    client = local_client(api, raise_server_exceptions=False)
    response = client.post("/v1/search", json={"query": "a dog"})
    assert (response.status_code, response.json()) == (status, {"error": message})
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)


def test_a_validation_message_is_short_and_names_the_field():
    errors = [
        {"loc": ("body", "filter", "x" * 500), "msg": "not valid"},
        {"loc": ("body",), "msg": "missing"},
    ]
    message = validation_message(errors, skip=1)
    assert message.startswith("filter.xxx") and message.endswith("; body: missing") and len(message) < 200
    assert len(validation_message(errors * 100)) == 1000


def test_routes_and_methods_that_do_not_exist_are_answered_alike():
    http = local_client(make_api(ServeArgs(index="none", auth="none"), FailingBackend(RuntimeError())))  # type: ignore[arg-type]
    missing, wrong = http.get("/v2/search"), http.get("/v1/search")
    assert missing.status_code == 404 and missing.json() == {
        "error": "there is no route /v2/search: /docs lists them"
    }
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert wrong.json() == {"error": "/v1/search does not take GET, but POST: /docs lists the routes"}
    assert http.get("/page/none.js").json().keys() == {"error"}
    for response in (missing, wrong, http.get("/docs"), http.get("/")):
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite(number: str):
    http = local_client(make_api(ServeArgs(index="none", auth="none"), FailingBackend(RuntimeError())))  # type: ignore[arg-type]
    for field in (f'"min_score": {number}', f'"filter": {{"year": {number}}}'):
        body = f'{{"query": "a dog", {field}}}'
        response = http.post("/v1/search", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 422 and "finite" in response.json()["error"]


@pytest.mark.parametrize("body", [b'{"query":' + b"[" * 100_000, b'{"query": "\xff"}'])
def test_a_body_that_cannot_be_parsed_is_answered(body: bytes):
    http = local_client(make_api(ServeArgs(index="none", auth="none"), FailingBackend(RuntimeError())))  # type: ignore[arg-type]
    response = http.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and "send JSON" in response.json()["error"]
