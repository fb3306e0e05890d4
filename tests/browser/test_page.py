"""The page in a real browser, against the running service."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Route, expect

from benchmarks.common.processes import free_port

QUERY = "the red ball spins"
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def url(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    from vmr_ray.serve.local import start

    own = tmp_path_factory.mktemp("page") / "index"
    shutil.copytree(index, own)  # because these tests add a video
    # The training of `index` holds out too few videos to be calibrated.
    checkpoint = own / "checkpoint" / "checkpoint.json"
    calibration = {"presence": {"slope": 0.5, "intercept": 0.0, "min_probability": 0.01}}
    checkpoint.write_text(json.dumps(json.loads(checkpoint.read_text()) | calibration))
    yield start(own, port=free_port())
    serve.shutdown()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The service's page. An error in its console or a request to another host fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    # The console also shows failed requests; some of these tests make searches fail.
    page.on(
        "console",
        lambda message: (
            errors.append(message.text)
            if message.type == "error" and "v1/search" not in message.location["url"]
            else None
        ),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: request.url.startswith(url) or errors.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert not errors


def search(page: Page, query: str = QUERY) -> None:
    page.fill("#query", query)
    page.press("#query", "Enter")
    expect(page.locator("#status")).to_contain_text("moment")


def seconds(page: Page) -> float:
    return page.evaluate("document.getElementById('video').currentTime")


def moment(page: Page, card: int = 0) -> tuple[float, float]:
    """Start and end of a card's moment as the card shows them, to a tenth of a second."""
    text = page.locator("#results button").nth(card).locator("span").inner_text()
    start, end = (60 * float(m) + float(s) for m, s in (part.split(":") for part in text.split(" – ")))
    return start, end


def wait_for(page: Page, condition: str, seconds: float = 30) -> None:
    """As `page.wait_for_function`, which evaluates a string in the page and is blocked by its policy."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(30)


def test_before_the_first_search(page: Page):
    expect(page.get_by_role("heading", name="Search inside video")).to_be_visible()
    expect(page.locator("#status")).to_have_text("9 videos to search.")
    expect(page.locator("#query")).to_be_focused()
    expect(page.locator("#player")).to_be_hidden()


def test_a_moment_plays_from_its_start_and_stops_at_its_end(page: Page):
    search(page)
    cards = page.locator("#results button")
    expect(cards).to_have_count(12)
    wait_for(page, "document.querySelector('#results img').naturalWidth > 0")
    start, end = moment(page)
    cards.first.click()
    wait_for(page, "!document.getElementById('video').paused")
    assert seconds(page) >= start - 0.1
    wait_for(page, "document.getElementById('video').paused")
    assert abs(seconds(page) - end) < 0.2
    expect(cards.first).to_have_attribute("aria-current", "true")
    # Below the player are the other moments of this video, and the curve.
    name = cards.first.locator("strong").inner_text()
    same = page.locator("#results strong", has_text=name).count()
    expect(page.locator("#marks button")).to_have_count(same)
    assert page.locator("#curve polygon").count() >= 1
    page.click("#again")
    wait_for(page, f"document.getElementById('video').currentTime < {end - 0.05}")


def test_another_hit_is_a_click_on_the_timeline(page: Page):
    search(page)
    page.locator("#results button").first.click()
    marks = page.locator("#marks button")
    expect(marks.first).to_be_visible()
    if marks.count() > 1:
        other = marks.nth(1)
        other.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#marks button").nth(1)).to_have_attribute("aria-current", "true")


def test_a_link_opens_the_same_moment_and_back_returns(page: Page, browser: Browser):
    search(page)
    page.locator("#results button").nth(2).click()
    name = page.locator("#results strong").nth(2).inner_text()
    start, _ = moment(page, 2)
    link = page.url
    assert "q=the+red+ball+spins" in link and "&v=" in link and "&t=" in link
    fresh = browser.new_page()
    fresh.goto(link)
    expect(fresh.locator("#name")).to_have_text(name)
    expect(fresh.locator("#results button").nth(2)).to_have_attribute("aria-current", "true")
    wait_for(fresh, f"Math.abs(document.getElementById('video').currentTime - {start}) < 3")
    fresh.close()
    page.go_back()  # from the moment to the results
    expect(page.locator("#player")).to_be_hidden()
    expect(page.locator("#results button")).to_have_count(12)
    page.go_back()  # and from these to the start
    expect(page.locator("#results button")).to_have_count(0)
    expect(page.locator("#query")).to_have_value("")
    page.go_forward()
    expect(page.locator("#query")).to_have_value(QUERY)
    expect(page.locator("#results button")).to_have_count(12)


def test_the_keyboard_is_enough(page: Page):
    search(page)
    cards = page.locator("#results button")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(cards.nth(0)).to_be_focused()
    page.keyboard.press("Enter")
    wait_for(page, "!document.getElementById('video').paused")
    page.keyboard.press("Space")
    assert page.evaluate("document.getElementById('video').paused")
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#query")).not_to_be_focused()


def test_more_moments_follow(page: Page):
    search(page)
    count = page.locator("#results button").count()
    expect(page.locator("#more")).to_have_text("More moments")
    page.click("#more")
    expect(page.locator("#results button").nth(count)).to_be_focused()


def test_less_probable_moments_follow_the_last_one_and_are_pale(page: Page):
    cards, more = page.locator("#results button"), page.locator("#more")
    with page.expect_response("**/v1/search") as response:
        search(page)
    lowest = {"min_probability": response.value.json()["results"][4]["probability"]}
    # What the page asks for itself goes first.
    page.route("**/v1/search", lambda route: ask(route, lowest | route.request.post_data_json))
    search(page)
    expect(cards).to_have_count(5)
    expect(page.locator("#results .improbable")).to_have_count(0)
    expect(more).to_have_text("Less probable moments")
    more.click()
    expect(cards.nth(5)).to_be_focused()
    expect(page.locator("#results .improbable")).to_have_count(cards.count() - 5)
    expect(cards.first.locator("small")).to_have_text(re.compile(r"^\d+ %$"))


def test_nothing_found_is_said(page: Page):
    page.route(
        "**/v1/search", lambda route: ask(route, route.request.post_data_json | {"min_probability": 1})
    )
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    expect(page.locator("#status")).to_have_text("Nothing found. Nearest anyway:")
    cards = page.locator("#results button")
    expect(page.locator("#results .improbable")).to_have_count(cards.count())
    expect(cards).not_to_have_count(0)
    expect(page.locator("#more")).to_be_hidden()


def ask(route: Route, body: dict[str, Any]) -> None:
    """Send another request to the service than the page does."""
    route.continue_(post_data=json.dumps(body))


def test_errors_and_an_unreachable_service_are_shown(page: Page):
    page.fill("#scope", "none.mp4")
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    expect(page.locator("#status")).to_contain_text("none.mp4")
    expect(page.locator("#status")).to_contain_text("not in the index")
    page.fill("#scope", "")
    page.route("**/v1/search", lambda route: route.abort())
    page.press("#query", "Enter")
    expect(page.locator("#status")).to_contain_text("cannot be reached")


def test_a_late_list_of_videos_hides_no_error(page: Page):
    late: list[Route] = []
    page.route("**/v1/videos?*", lambda route: late.append(route))
    page.reload()
    page.fill("#scope", "none.mp4")
    page.fill("#query", QUERY)
    page.press("#query", "Enter")
    expect(page.locator("#status")).to_contain_text("not in the index")
    with page.expect_response("**/v1/videos?*"):
        late[0].continue_()
    expect(page.locator("#videos option")).not_to_have_count(0)
    expect(page.locator("#status")).to_contain_text("not in the index")


def test_a_search_is_repeated_when_the_service_is_busy(page: Page):
    refused: list[int] = []

    def busy(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(1)
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "busy"})

    page.route("**/v1/search", busy)
    search(page)
    assert refused


def test_it_fits_a_phone(page: Page):
    page.set_viewport_size({"width": 390, "height": 844})
    search(page)
    page.locator("#results button").first.click()
    expect(page.locator("#marks button").first).to_be_visible(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_upload_becomes_searchable(page: Page, world: Any, tmp_path: Path):
    video = tmp_path / "new one.mp4"
    shutil.copy(min(world.videos.glob("*.mp4")), video)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    page.set_input_files("#file", [video, bad])
    rows = page.locator("#uploads li")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("searchable", timeout=120_000)
    expect(rows.last).to_have_class("failed", timeout=120_000)
    rows.first.get_by_role("button", name="Search in it").click()
    expect(page.locator("#scope")).to_have_value("new one.mp4")
    search(page)
    assert set(page.locator("#results strong").all_inner_texts()) == {"new one.mp4"}


def test_a_key_is_asked_for(browser: Browser, index: Path, tmp_path: Path):
    """A wrong key is reported; with the right one thumbnails and the player work too."""
    from vmr_ray.search.searcher import Searcher
    from vmr_ray.serve.api import make_api
    from vmr_ray.serve.auth import new_key
    from vmr_ray.serve.models import ServeArgs

    class Local:
        """The searcher alone, without Serve."""

        def __init__(self) -> None:
            self.searcher = Searcher(index)

        async def search(self, request: Any) -> Any:
            return self.searcher.search_many([request])[0]

        async def videos(self, video_ids: Any = None, offset: int = 0, limit: int | None = None) -> Any:
            return self.searcher.videos(video_ids, offset, limit)

    key = new_key("ann", tmp_path / "keys")
    settings = ServeArgs(index=str(index), auth="keys", key_file=str(tmp_path / "keys"))
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(make_api(settings, Local()), port=port, log_level="error")  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        page = browser.new_context().new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        dialog = page.locator("#key-prompt")
        expect(dialog).to_be_visible()
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("not valid")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#status")).to_have_text("9 videos to search.")
        search(page)
        wait_for(page, "document.querySelector('#results img').naturalWidth > 0")
        page.locator("#results button").first.click()
        wait_for(page, "document.getElementById('video').duration > 0")
        page.context.close()
    finally:
        server.should_exit = True
        thread.join()
