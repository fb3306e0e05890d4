"""Bodies that are too large or never end are answered, so that no replica waits for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vmr_ray.serve.api import make_api
from vmr_ray.serve.ingest import IngestJob
from vmr_ray.serve.limits import BodyLimit
from vmr_ray.serve.models import ServeArgs

STALLED = object()


def post(
    path: str, content_type: str, parts: list[Any], index: str = "none", pause: float = 0.0
) -> tuple[int, bytes]:
    """Status and body of the answer to a POST whose body has these parts, each after a pause; after STALLED
    nothing comes, and an empty part is the end."""
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
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(api(scope, receive, send), 20))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


class Backend:
    async def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob:
        return IngestJob("1f", video_id, uri, metadata)

    async def videos(self, video_ids: Any = None) -> list[dict[str, Any]]:
        return []


def test_a_body_that_stalls_is_answered():
    status, answer = post("/v1/search", "application/json", [b'{"query": ', STALLED])
    assert status == 408 and b"not complete after 0.2 s" in answer


def test_a_body_that_trickles_is_answered():
    """A byte now and then keeps no place."""
    status, _ = post("/v1/search", "application/json", [b" "] * 1000, pause=0.01)
    assert status == 408
    status, answer = post("/v1/videos?name=a.mp4", "video/mp4", [b"x"] * 1000, pause=0.01)
    assert status == 408 and b"fewer than 8 KB/s" in answer


def test_an_upload_at_a_fair_rate_is_taken(tmp_path: Path):
    parts = [b"x" * 2000] * 30  # 0.3 s: longer than the limit, at more than the least rate
    status, answer = post("/v1/videos?name=a.mp4", "video/mp4", [*parts, b""], str(tmp_path), pause=0.01)
    assert status == 202, answer


def test_the_body_that_has_taken_longest_makes_room():
    """Slow clients keep no quick one out."""
    statuses: dict[int, int] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"quick"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def run() -> None:
        limit = BodyLimit(app, is_streamed=lambda _: False, max_readers=3)

        async def client(number: int, body: bytes | None) -> None:
            async def receive() -> Any:
                if body is None:
                    await asyncio.sleep(60)
                return {"type": "http.request", "body": body}

            async def send(message: Any) -> None:
                statuses.setdefault(number, message.get("status"))

            scope = {"type": "http", "method": "POST", "path": "/v1/search"}
            await limit(scope, receive, send)

        slow = [asyncio.create_task(client(number, None)) for number in range(3)]
        await asyncio.sleep(0.01)
        await client(3, b"quick")
        await asyncio.sleep(0.01)
        assert statuses == {0: 503, 3: 200}
        for task in slow:
            task.cancel()

    asyncio.run(run())


def test_a_large_body_is_refused_before_its_end():
    assert post("/v1/search", "application/json", [b" " * (1 << 19)] * 3 + [STALLED])[0] == 413


def test_an_upload_that_stalls_is_answered_and_leaves_nothing(tmp_path: Any):
    (tmp_path / "index").mkdir()
    status, answer = post(
        "/v1/videos?name=a.mp4", "video/mp4", [b"x" * 1000, STALLED], str(tmp_path / "index")
    )
    assert status == 408 and b"fewer than" in answer
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
