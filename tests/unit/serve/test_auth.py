"""API keys, and which files may be added."""

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
from vmr_ray.serve.ingest import checked_uri, upload_name


@pytest.fixture(autouse=True)
def _no_keys_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def test_a_key_is_kept_as_a_hash_in_a_private_file(tmp_path: Path):
    file = tmp_path / "keys"
    first, second = new_key("ann", file), new_key("bob", file)
    text = file.read_text()
    assert first not in text and second not in text
    assert load_keys(file) == {"ann": digest(first), "bob": digest(second)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "told"),
    [("ann secret\n", "line 1"), ("# nothing\n", "no API key"), ("ann " + "0" * 64 + " x\n", "line 1")],
)
def test_a_malformed_or_empty_key_file_is_refused(tmp_path: Path, text: str, told: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(VmrError, match=told):
        load_keys(tmp_path / "keys")


def test_no_key_at_all_is_a_mistake(tmp_path: Path):
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


def client(keys: dict[str, str] | None, host: str = "10.0.0.9") -> TestClient:
    app = Starlette(
        routes=[
            Route(path, lambda _: PlainTextResponse("in"), methods=["GET", "POST"])
            for path in ("/", "/healthz", "/v1/search", "/v1/videos/a/stream")
        ]
    )
    app.add_middleware(Gate, keys=keys)
    return TestClient(app, client=(host, 5000))


def test_only_a_valid_key_opens():
    ask = client({"ann": digest("right"), "bob": digest("other")})
    for headers in (
        {"authorization": "Bearer right"},
        {"authorization": "bearer other"},
        {"x-api-key": "right"},
    ):
        assert ask.post("/v1/search", headers=headers).status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"authorization": "right"},
        {"x-api-key": ""},
        {"x-api-key": digest("right")},
        {"cookie": "vmr_key=right"},
    ):
        refused = ask.post("/v1/search", headers=headers)
        assert refused.status_code == 401, headers
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "X-API-Key" in refused.json()["error"]


def test_a_player_may_send_its_key_as_a_cookie():
    ask = client({"ann": digest("right")})
    assert ask.get("/v1/videos/a/stream", headers={"cookie": "vmr_key=right"}).status_code == 200
    assert ask.get("/v1/videos/a/stream").status_code == 401


def test_monitors_and_the_page_need_no_key():
    ask = client({"ann": digest("right")})
    assert ask.get("/healthz").status_code == ask.get("/").status_code == 200
    assert ask.get("/healthz/../v1/search").status_code == 401


def test_without_keys_only_this_machine_is_answered():
    assert client(None, "127.0.0.1").post("/v1/search").status_code == 200
    assert client(None, "::1").post("/v1/search").status_code == 200
    refused = client(None, "10.0.0.9").get("/healthz")
    assert refused.status_code == 403 and "auth: keys" in refused.json()["error"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    root.mkdir()
    (root / "in.mp4").write_bytes(b"x")
    (tmp_path / "out.mp4").write_bytes(b"x")
    (root / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (root / "inner.mp4").symlink_to(root / "in.mp4")
    (root / "notes.txt").write_bytes(b"x")
    (tmp_path / "archive2").mkdir()
    (tmp_path / "archive2" / "in.mp4").write_bytes(b"x")
    return root


def test_a_file_below_a_root_is_taken(archive: Path):
    assert checked_uri(f"{archive}/in.mp4", [str(archive)]) == str(archive / "in.mp4")
    assert checked_uri(f"{archive}/inner.mp4", [str(archive)]) == str(archive / "in.mp4")


@pytest.mark.parametrize(
    "uri",
    [
        "{root}/../out.mp4",
        "{root}/link.mp4",
        "{root}2/in.mp4",
        "../../etc/passwd",
        "/etc/passwd",
        "in.mp4",
        "file://{root}/in.mp4",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/a.mp4",
        "s3://other/in.mp4",
        "s3://bucket/videos/../secret/in.mp4",
        "s3://bucket/videos/%2e%2e/secret/in.mp4",
        "s3://bucket/videos/%252e%252e/secret/in.mp4",
        "s3://bucket/videos-2/in.mp4",
        "s3://me:secret@bucket/videos/in.mp4",
        "s3://bucket/videos/in.mp4?endpoint_override=http://169.254.169.254",
        "{root}/in.mp4\0.txt",
    ],
)
def test_a_file_elsewhere_is_refused_without_a_word_of_where(archive: Path, uri: str):
    with pytest.raises(VmrError, match="not below any of the roots") as refusal:
        checked_uri(uri.format(root=archive), [str(archive), "s3://bucket/videos"])
    assert str(archive) not in str(refusal.value)


def test_below_no_root_nothing_is_taken(archive: Path):
    with pytest.raises(VmrError, match="roots"):
        checked_uri(f"{archive}/in.mp4", [])


def test_what_is_no_video_or_not_there_is_refused(archive: Path):
    with pytest.raises(VmrError, match="no video by its name"):
        checked_uri(f"{archive}/notes.txt", [str(archive)])
    with pytest.raises(VmrError, match="no file"):
        checked_uri(f"{archive}/none.mp4", [str(archive)])


@pytest.mark.parametrize(
    "name", ["../a.mp4", "a/b.mp4", ".mp4", "a.txt", "", "a\n.mp4", "-a.mp4", "x" * 300 + ".mp4"]
)
def test_an_upload_has_a_plain_name(name: str):
    with pytest.raises(VmrError, match="plain file name"):
        upload_name(name)
    assert upload_name("Kitchen (2) - cam+1.MP4") == "Kitchen (2) - cam+1.MP4"
