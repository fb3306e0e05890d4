"""What runs in the proxies: quick refusals, and files in pieces that wait for the client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from vmr_ray.cluster import SERVE_PROXY
from vmr_ray.features.chunks import version_key
from vmr_ray.serve.admission import SearchPlaces
from vmr_ray.serve.api import make_api
from vmr_ray.serve.door import Door, NoOverrides, OneShape, Pieces, TakePlaces, middlewares
from vmr_ray.serve.models import ServeArgs

STREAM = "/v1/videos/a.mp4/stream"


class Client:
    """Sends one request to an ASGI application; `read` is set to take more of the answer than its start."""

    def __init__(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""):
        named = {"host": "127.0.0.1"} | (headers or {})
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 5000),
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        }
        self.bodies, self.read, self.left = [body], asyncio.Event(), asyncio.Event()
        self.status, self.headers, self.content = 0, dict[str, str](), b""

    async def receive(self) -> Any:
        if self.bodies:
            return {"type": "http.request", "body": self.bodies.pop()}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.content += message.get("body", b"")
            await self.read.wait()

    async def run(self, app: Any) -> Client:
        self.read.set()
        await app(self.scope, self.receive, self.send)
        return self


class Backend:
    """One indexed video; counts how often it is looked up."""

    def __init__(self, path: Path):
        status = path.stat()
        version = version_key(f"{status.st_size}-{status.st_mtime_ns}")
        self.row, self.lookups = {"video_id": "a.mp4", "uri": str(path), "version": version}, 0

    async def videos(self, video_ids: Any = None) -> list[dict[str, Any]]:
        self.lookups += 1
        return [self.row]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(250)) * 400)
    return path


@pytest.fixture
def backend(video: Path) -> Backend:
    return Backend(video)


@pytest.fixture
def pieces(backend: Backend) -> Pieces:
    api = make_api(ServeArgs(index="none", auth="none"), backend)  # type: ignore[arg-type]
    return Pieces(api, piece=1000, part=10_000)


def get(app: Any, headers: dict[str, str] | None = None) -> Client:
    async def run() -> Client:
        return await Client("GET", STREAM, headers).run(app)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-", 0, 10_000),
        ("bytes=5000-", 5000, 15_000),
        ("bytes=99500-", 99_500, 100_000),
        ("bytes=10-50009", 10, 50_010),
        ("bytes=7-7", 7, 8),
        ("bytes=99990-200000", 99_990, 100_000),
        ("bytes=-500", 99_500, 100_000),
    ],
)
def test_a_range_is_put_together_from_pieces(pieces: Pieces, video: Path, asked: str, first: int, end: int):
    answer = get(pieces, {"range": asked})
    assert answer.status == 206 and answer.content == video.read_bytes()[first:end]
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/100000"
    assert answer.headers["content-length"] == str(end - first)


def test_a_whole_file_is_put_together_from_pieces(pieces: Pieces, video: Path, backend: Backend):
    answer = get(pieces)
    assert answer.status == 200 and answer.content == video.read_bytes()
    assert answer.headers["content-length"] == "100000" and "content-range" not in answer.headers
    assert backend.lookups == 1  # the next pieces need none
    assert get(pieces, {"range": "bytes=100000-"}).status == 416
    assert get(pieces, {"range": "bytes=9-3"}).content == video.read_bytes()
    assert get(pieces, {"if-range": '"other"', "range": "bytes=0-9"}).status == 200


def test_a_client_that_does_not_read_is_not_read_for(pieces: Pieces, video: Path):
    async def run() -> tuple[int, int]:
        client = Client("GET", STREAM)
        viewer = asyncio.create_task(pieces(client.scope, client.receive, client.send))
        while not client.content:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)  # in which it could get more
        paused = len(client.content)
        client.left.set()
        await asyncio.sleep(0)
        client.read.set()
        await viewer
        return paused, len(client.content)

    paused, left = asyncio.run(run())
    assert paused == 1000 and left <= 2000


def test_a_few_pieces_at_a_time_serve_many_readers(backend: Backend, video: Path):
    api: Any = make_api(ServeArgs(index="none", auth="none"), backend)  # type: ignore[arg-type]
    fetches, most = 0, 0

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        nonlocal fetches, most
        fetches += 1
        most = max(most, fetches)
        await api(scope, receive, send)
        fetches -= 1

    async def run() -> list[Client]:
        pieces = Pieces(counted, piece=10_000, max_fetches=2)
        paused = Client("GET", STREAM)
        viewer = asyncio.create_task(pieces(paused.scope, paused.receive, paused.send))
        while not paused.content:
            await asyncio.sleep(0.001)
        readers = await asyncio.gather(*(Client("GET", STREAM).run(pieces) for _ in range(6)))
        viewer.cancel()
        return readers

    readers = asyncio.run(run())
    assert all(reader.content == video.read_bytes() for reader in readers)
    assert most == 2


def test_a_file_that_is_replaced_meanwhile_ends_the_answer(pieces: Pieces, video: Path):
    async def run() -> None:
        client = Client("GET", STREAM)
        viewer = asyncio.create_task(pieces(client.scope, client.receive, client.send))
        while not client.content:
            await asyncio.sleep(0.001)
        video.write_bytes(bytes(100_000))
        client.read.set()
        with pytest.raises(ConnectionError):
            await viewer

    asyncio.run(run())


def test_searches_beyond_the_limit_are_refused_unread():
    async def run() -> list[Client]:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        places = SearchPlaces(2.0)
        door = Door(TakePlaces(app, places), places)
        clients = [Client("POST", "/v1/search", body=b"{}") for _ in range(100)]
        tasks = [asyncio.create_task(client.run(door)) for client in clients]
        other = asyncio.create_task(Client("GET", "/v1/videos").run(door))
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(*tasks)
        assert (await other).status == 200
        return clients

    clients = asyncio.run(run())
    refused = [client for client in clients if client.status == 503]
    assert len(refused) == 36
    assert json.loads(refused[0].content) == {"error": "busy: try again in a second"}
    assert refused[0].headers["retry-after"] == "1"


def test_errors_of_serve_get_the_shape_of_all_others():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 500, "headers": headers})
        await send({"type": "http.response.body", "body": b"actor", "more_body": True})
        await send({"type": "http.response.body", "body": b" died"})

    async def run() -> tuple[Client, Client]:
        shaped = OneShape(app)
        return await Client("GET", "/v1/videos").run(shaped), await Client("GET", "/app").run(shaped)

    ours, other = asyncio.run(run())
    assert ours.status == 503 and json.loads(ours.content) == {"error": "busy: try again in a second"}
    assert ours.headers["retry-after"] == "1" and ours.headers["content-length"] == str(len(ours.content))
    assert other.status == 500 and other.content == b"actor died"


def test_a_client_cannot_change_how_long_serve_works_for_it():
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    headers = {"X-Request-Timeout-Seconds": "0", "x-request-disconnect-disabled": "?1", "x-api-key": "k"}
    asyncio.run(Client("GET", "/v1/videos", headers).run(NoOverrides(app)))
    assert seen == [b"host", b"x-api-key"]


def test_serve_finds_the_door():
    module, _, function = SERVE_PROXY[1].rpartition(".")
    assert (module, function) == (middlewares.__module__, middlewares.__name__)
    app: Any = make_api(ServeArgs(index="none", auth="none"), None)  # type: ignore[arg-type]
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)

    async def run() -> Client:
        return await Client("GET", "/healthz").run(app)

    assert asyncio.run(run()).status == 200


def test_searches_whose_bodies_do_not_come_take_no_place():
    api = make_api(ServeArgs(index="none", auth="none"), None)  # type: ignore[arg-type]
    app: Any = api
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)

    async def run() -> Client:
        slow = []
        for _ in range(100):
            client = Client("POST", "/v1/search")
            client.bodies = []
            slow.append(asyncio.create_task(client.run(app)))
        await asyncio.sleep(0.05)
        headers = {"content-type": "application/json"}
        quick = await Client("POST", "/v1/search", headers, b"{}").run(app)
        for task in slow:
            task.cancel()
        return quick

    assert asyncio.run(run()).status == 422
