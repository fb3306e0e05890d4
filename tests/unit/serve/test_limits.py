"""Bodies that are too large, or never end: each is answered, and no replica waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from vmr_ray.serve.api import make_api
from vmr_ray.serve.models import ServeArgs

STALLED = object()


def ask(path: str, kind: str, parts: list[Any], index: str = "none") -> tuple[int, bytes]:
    """Status and body of the answer to a POST with a body in these parts; STALLED: nothing more comes."""
    api = make_api(ServeArgs(index=index, auth="none", idle_s=0.2), Backend())  # type: ignore[arg-type]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path.partition("?")[0],
        "raw_path": path.encode(),
        "query_string": path.partition("?")[2].encode(),
        "headers": [(b"content-type", kind.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    sent: list[Any] = []
    left = list(parts)

    async def receive() -> Any:
        part = left.pop(0) if left else STALLED
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


def test_a_body_that_stops_coming_is_given_up():
    status, told = ask("/v1/search", "application/json", [b'{"query": ', STALLED])
    assert status == 408 and b"nothing came for 0.2 s" in told


def test_a_large_body_is_refused_before_it_is_all_there():
    assert ask("/v1/search", "application/json", [b" " * (1 << 19)] * 3 + [STALLED])[0] == 413


def test_an_upload_that_stops_coming_is_given_up_and_leaves_nothing(tmp_path: Any):
    (tmp_path / "index").mkdir()
    status, told = ask("/v1/videos?name=a.mp4", "video/mp4", [b"x" * 1000, STALLED], str(tmp_path / "index"))
    assert status == 408 and b"nothing came" in told
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
