"""API keys: how they are stored, and which requests need one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from vmr_ray.errors import VmrError
from vmr_ray.serve.auth import ENVIRONMENT, Gate, digest, load_keys, new_key


@pytest.fixture(autouse=True)
def _no_keys_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def test_a_key_is_kept_as_a_hash_in_a_private_file(tmp_path: Path):
    file = tmp_path / "keys"
    first, second = new_key("ann", file), new_key("bob", file)
    text = file.read_text()
    assert first not in text and second not in text
    assert load_keys(file) == {"ann": digest(first), "bob": digest(second)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "message"),
    [("ann secret\n", "line 1"), ("# nothing\n", "no API key"), ("ann " + "0" * 64 + " x\n", "line 1")],
)
def test_a_malformed_or_empty_key_file_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(VmrError, match=message):
        load_keys(tmp_path / "keys")


def test_a_key_is_added_to_a_file_without_a_last_newline(tmp_path: Path):
    (tmp_path / "keys").write_text(f"ann {digest('secret')}")
    key = new_key("bob", tmp_path / "keys")
    assert load_keys(tmp_path / "keys") == {"ann": digest("secret"), "bob": digest(key)}


def test_no_key_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(VmrError, match="vmr keys new"):
        load_keys(None)
    with pytest.raises(VmrError, match="cannot read"):
        load_keys(tmp_path / "none")


def test_a_name_is_used_once(tmp_path: Path):
    new_key("ann", tmp_path / "keys")
    with pytest.raises(VmrError, match="already"):
        new_key("ann", tmp_path / "keys")
    with pytest.raises(VmrError, match="one word"):
        new_key("ann b", tmp_path / "keys")


def client(
    keys: dict[str, str] | None, host: str = "10.0.0.9", url: str = "http://127.0.0.1:8000"
) -> TestClient:
    app = Starlette(
        routes=[
            Route(path, lambda _: PlainTextResponse("in"), methods=["GET", "POST"])
            for path in ("/", "/healthz", "/v1/search", "/v1/videos/a/stream")
        ]
    )
    app.add_middleware(Gate, keys=keys, hosts=["Films.lan"])
    return TestClient(app, base_url=url, client=(host, 5000))


def test_only_a_valid_key_is_let_through():
    http = client({"ann": digest("right"), "bob": digest("other")})
    for headers in (
        {"authorization": "Bearer right"},
        {"authorization": "bearer other"},
        {"x-api-key": "right"},
    ):
        assert http.post("/v1/search", headers=headers).status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"authorization": "right"},
        {"x-api-key": ""},
        {"x-api-key": digest("right")},
        {"cookie": "vmr_key=right"},
    ):
        refused = http.post("/v1/search", headers=headers)
        assert refused.status_code == 401, headers
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "X-API-Key" in refused.json()["error"]


def test_a_player_may_send_its_key_as_a_cookie():
    http = client({"ann": digest("right")})
    assert http.get("/v1/videos/a/stream", headers={"cookie": "vmr_key=right"}).status_code == 200
    assert http.get("/v1/videos/a/stream").status_code == 401


def test_monitors_and_the_page_need_no_key():
    http = client({"ann": digest("right")})
    assert http.get("/healthz").status_code == http.get("/").status_code == 200
    assert http.get("/healthz/../v1/search").status_code == 401


def test_without_keys_only_this_machine_is_answered():
    assert client(None, "127.0.0.1").post("/v1/search").status_code == 200
    assert client(None, "::1").post("/v1/search").status_code == 200
    refused = client(None, "10.0.0.9").get("/healthz")
    assert refused.status_code == 403 and "auth: keys" in refused.json()["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[
            (host, 200)
            for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "films.lan:80")
        ],
        *[
            (host, 403)
            for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.9", "[", "")
        ],
        # More than a name and a port.
        *[(f"127.0.0.1{rest}", 403) for rest in ("/x", "?x", "#x", "\\x", "@evil.example")],
        ("evil.example@127.0.0.1", 403),
    ],
)
def test_without_keys_the_name_must_be_this_machines(host: str, status: int):
    """A page whose name was rebound to 127.0.0.1 sends its own name."""
    answer = client(None, "127.0.0.1").get("/v1/search", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or "hosts" in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://127.0.0.1:8001"}, 403),
        ({"origin": "http://localhost:8000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),  # a page on another port of this machine
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_without_keys_pages_of_other_sites_are_refused(headers: dict[str, str], status: int):
    answer = client(None, "127.0.0.1").post("/v1/search", headers=headers)
    assert answer.status_code == status
    assert status == 200 or "other sites" in answer.json()["error"]
    # With keys, the key decides.
    keyed = client({"ann": digest("right")}).post("/v1/search", headers=headers | {"x-api-key": "right"})
    assert keyed.status_code == 200
