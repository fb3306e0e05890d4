"""The page's player shows the frame that was searched, by the number that is drawn into the pixels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from benchmarks.common.processes import free_port
from tests.reported import reported_file, reported_files
from tests.videos import read_index
from vmr_ray.config import DecodeConfig
from vmr_ray.features.chunks import version_key
from vmr_ray.schema import Scaling
from vmr_ray.serve.api import make_api
from vmr_ray.serve.models import ServeArgs
from vmr_ray.video.decode import FrameDecoder

# What the page shows of a video: the frame, its width and whether it is a clip.
PLAY = """([video_id, start, end]) => import("./page/player.js").then(
    player => player.play({ video_id, start, end }, [], null, () => {}, false))"""
READY = "!document.getElementById('video').seeking && document.getElementById('video').readyState >= 2"
PIXELS = """() => {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
    [canvas.width, canvas.height] = [64, 48];
    context.drawImage(document.getElementById("video"), 0, 0, 64, 48);
    return [...context.getImageData(0, 0, 64, 48).data];
}"""


class Files:
    """The part of the service's backend that knows where videos are."""

    def __init__(self) -> None:
        self.uris: dict[str, str] = {}

    async def videos(self, video_ids: Any = None, offset: int = 0, limit: int | None = None) -> list[dict]:
        return [self._row(name) for name in video_ids or ()]

    def _row(self, name: str) -> dict[str, Any]:
        status = Path(self.uris[name]).stat()
        version = version_key(f"{status.st_size}-{status.st_mtime_ns}")
        row = {"video_id": name, "uri": self.uris[name], "version": version}
        return row | {"duration": 2.0, "frames": 2, "partial": False}


@pytest.fixture(scope="module")
def files() -> Files:
    return Files()


@pytest.fixture(scope="module")
def page(browser: Browser, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    settings = ServeArgs(index=str(tmp_path_factory.mktemp("index")), auth="none")
    port = free_port()
    api = make_api(settings, files)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    yield page
    page.close()
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    with FrameDecoder(DecodeConfig(sampling="fps=1"), 64, 48, Scaling()) as decoder:
        yield decoder


@pytest.mark.parametrize("kind", reported_files())
def test_the_player_shows_the_frame_that_was_searched(
    kind: str | Path, page: Page, files: Files, decoder: FrameDecoder, tmp_path: Path
) -> None:
    path = reported_file(kind, tmp_path)
    files.uris[path.name] = str(path)
    (chunk, *_) = decoder.decode(str(path))
    second, expected = float(chunk.times[1]), read_index(chunk.frames[1])
    page.evaluate(PLAY, [path.name, second, second + 0.4])
    deadline = time.monotonic() + 30
    while True:
        page.wait_for_timeout(100)
        if page.evaluate(READY):
            pixels = np.array(page.evaluate(PIXELS), np.uint8).reshape(48, 64, 4)[..., :3]
            if read_index(pixels) == expected:
                break
        assert time.monotonic() < deadline, page.evaluate("document.getElementById('video').src")
    if "ts" in path.suffix or path.name == "two_pictures.mkv":
        expect(page.locator("#note")).to_contain_text("as a clip")
    expect(page.locator("#length")).not_to_contain_text("NaN")
