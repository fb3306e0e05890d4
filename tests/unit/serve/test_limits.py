"""Bodies that are too large or never end are answered, so that no replica waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from vmr_ray.serve.api import make_api
from vmr_ray.serve.models import ServeArgs

STALLED = object()


def post(path: str, content_type: str, parts: list[Any], index: str = "none") -> tuple[int, bytes]:
    """Status and body of the answer to a POST whose body has these parts; after STALLED nothing comes."""
    api = make_api(ServeArgs(index=index, auth="none", idle_s=0.2), Backend())  # type: ignore[arg-type]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path.partition("?")[0],
        "raw_path": path.encode(),
        "query_string": path.partition("?")[2].encode(),
        "headers": [(b"content-type", content_type.encode()), (b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    sent: list[Any] = []
    remaining = list(parts)

    async def receive() -> Any:
        part = remaining.pop(0) if remaining else STALLED
        if part is STALLED:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(api(scope, receive, send), 20))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


class Backend:
    async def videos(self, video_ids: Any = None) -> list[dict[str, Any]]:
        return []


def test_a_body_that_stalls_is_answered():
    status, answer = post("/v1/search", "application/json", [b'{"query": ', STALLED])
    assert status == 408 and b"nothing came for 0.2 s" in answer


def test_a_large_body_is_refused_before_its_end():
    assert post("/v1/search", "application/json", [b" " * (1 << 19)] * 3 + [STALLED])[0] == 413


def test_an_upload_that_stalls_is_answered_and_leaves_nothing(tmp_path: Any):
    (tmp_path / "index").mkdir()
    status, answer = post(
        "/v1/videos?name=a.mp4", "video/mp4", [b"x" * 1000, STALLED], str(tmp_path / "index")
    )
    assert status == 408 and b"nothing came" in answer
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
