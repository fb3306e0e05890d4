"""What a page of another site can do to a service without keys: nothing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, sync_playwright

from benchmarks.common.processes import free_port
from tests.videos import write_video
from vmr_ray.features.chunks import version_key
from vmr_ray.serve.api import make_api
from vmr_ray.serve.ingest import IngestJob
from vmr_ray.serve.models import ServeArgs

NAME = "rebound.example"  # the attacker's name, whose address is 127.0.0.1 in the browser


class Backend:
    """One video; remembers what is added and deleted."""

    def __init__(self, path: Path):
        status = path.stat()
        version = version_key(f"{status.st_size}-{status.st_mtime_ns}")
        self.row = {"video_id": "a.mp4", "uri": str(path), "version": version, "metadata": {}}
        self.row |= {"duration": 2.0, "frames": 2, "partial": False}
        self.changes: list[str] = []

    async def videos(self, video_ids: Any = None, offset: int = 0, limit: int | None = None) -> list[Any]:
        return [self.row] if video_ids is None or "a.mp4" in video_ids else []

    async def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob:
        self.changes.append(f"added {video_id}")
        return IngestJob("1f", video_id, uri, metadata)

    async def delete(self, video_id: str) -> None:
        self.changes.append(f"deleted {video_id}")


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return Backend(write_video(tmp_path_factory.mktemp("video") / "a.mp4", seconds=2))


@pytest.fixture(scope="module")
def port(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a service without keys."""
    port = free_port()
    api = make_api(ServeArgs(index=str(tmp_path_factory.mktemp("index")), auth="none"), backend)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield port
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of another site, in a browser that finds the attacker's name at 127.0.0.1."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("<!doctype html><title>another site</title>")

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", f"--host-resolver-rules=MAP {NAME} 127.0.0.1"],
        )
        page = browser.new_context().new_page()
        page.goto(f"http://{NAME}:{site.server_port}/")
        yield page
        browser.close()
    site.shutdown()
    site.server_close()


# Each returns what the page could read of the answer; an opaque answer has the status 0.
SEND = """async ([url, options]) => {
  try {
    if (options.video) options.body = new Blob([new Uint8Array(1000)], {type: options.video});
    const answer = await fetch(url, options);
    return [answer.status, await answer.text()];
  } catch (error) { return ["refused", String(error)]; }
}"""


def test_a_page_of_another_site_adds_nothing(page: Page, port: int, backend: Backend):
    """A body of plain text is sent without asking the service first."""
    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{port}/v1/videos?name=evil.mp4"
        for kind in ("text/plain", "application/octet-stream", "video/mp4"):
            options = {"method": "POST", "mode": "no-cors", "video": kind}
            assert page.evaluate(SEND, [url, options])[0] in (0, "refused")
        options = {"method": "POST", "mode": "no-cors", "body": '{"uri": "/a.mp4"}'}
        assert page.evaluate(SEND, [url, options])[0] in (0, "refused")
        # Pictures and players of other sites are refused, too.
        loaded = page.evaluate(
            """url => new Promise(done => { const video = document.createElement("video");
               video.onloadedmetadata = () => done(true); video.onerror = () => done(false);
               video.src = url; })""",
            f"http://{host}:{port}/v1/videos/a.mp4/stream",
        )
        assert loaded is False
    assert backend.changes == []


def test_a_rebound_name_shows_and_deletes_nothing(page: Page, port: int, backend: Backend):
    """A page at the service's own port, under the attacker's name, which now leads to this machine: to the
    browser it is the service's own page."""
    other = page.context.new_page()
    answer = other.goto(f"http://{NAME}:{port}/")
    assert answer and answer.status == 403
    for path, method in (
        ("/v1/videos", "GET"),
        ("/v1/videos/a.mp4/stream", "GET"),
        ("/v1/videos/a.mp4", "DELETE"),
        ("/v1/videos?name=evil.mp4", "POST"),
    ):
        options = {"method": method} | ({"video": "video/mp4"} if method == "POST" else {})
        status, text = other.evaluate(SEND, [path, options])
        assert status == 403 and "is not a name of this machine" in text, (path, status, text)
    other.close()
    assert backend.changes == []


def test_the_services_own_page_may_do_all_of_it(page: Page, port: int, backend: Backend):
    for host in ("127.0.0.1", "localhost"):
        own = page.context.new_page()
        own.goto(f"http://{host}:{port}/page/icon.svg")
        assert own.evaluate(SEND, ["/v1/videos", {}])[0] == 200
        assert own.evaluate(SEND, ["/v1/videos/a.mp4", {"method": "DELETE"}])[0] == 204
        options = {"method": "POST", "video": "video/mp4"}
        name = f"{host.replace('.', '-')}.mp4"
        assert own.evaluate(SEND, [f"/v1/videos?name={name}", options])[0] == 202
        own.close()
    assert backend.changes == [
        "deleted a.mp4",
        "added 127-0-0-1.mp4",
        "deleted a.mp4",
        "added localhost.mp4",
    ]
