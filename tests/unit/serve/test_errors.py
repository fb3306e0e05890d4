"""Every error is answered in one form, and internal ones show nothing."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

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
    client = TestClient(api, client=("127.0.0.1", 5000), raise_server_exceptions=False)
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
