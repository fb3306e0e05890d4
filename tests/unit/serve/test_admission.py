"""Places by kind, and searches only as fast as they are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vmr_ray.serve.admission import Places, SearchPlaces, kind_of
from vmr_ray.serve.errors import UnavailableError


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/search", "search"),
        ("POST", "/sport/v1/search:batch", "search"),
        ("GET", "/v1/search", "other"),
        ("POST", "/v1/videos", "upload"),
        ("GET", "/v1/videos", "other"),
        ("GET", "/v1/videos/a/b.mp4/stream", "stream"),
        ("GET", "/v1/videos/a.mp4/thumbnail", "picture"),
        ("GET", "/v1/videos/a.mp4/clip", "picture"),
        ("GET", "/readyz", "operation"),
        ("GET", "/", "other"),
    ],
)
def test_kinds(method: str, path: str, kind: str):
    assert kind_of({"method": method, "path": path}) == kind


def test_a_kind_that_is_full_leaves_the_others_alone():
    async def run() -> list[int]:
        go, statuses = asyncio.Event(), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        places = Places(app, {"stream": 2, "other": 1})

        async def ask(path: str) -> None:
            await places({"type": "http", "method": "GET", "path": path}, None, send)  # type: ignore[arg-type]

        viewers = [asyncio.create_task(ask("/v1/videos/a/stream")) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert statuses == [503, 503]
        other = asyncio.create_task(ask("/v1/videos"))
        await asyncio.sleep(0.01)
        assert statuses == [503, 503]
        go.set()
        await asyncio.gather(*viewers, other)
        await ask("/v1/videos/a/stream")  # the places are free again
        return statuses

    assert asyncio.run(run()) == [503, 503, 200, 200, 200, 200]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answer(places: SearchPlaces, clock: Clock, count: int, seconds: float) -> None:
    """`count` searches, one after the other, each answered after so long."""
    for _ in range(count):
        with places.take() as answered:
            clock.now += seconds
            answered()


def test_as_many_are_admitted_as_are_answered_in_time():
    places = SearchPlaces(2.0, least=4, first=10, clock=(clock := Clock()))
    assert places.limit == 10
    answer(places, clock, 200, 0.1)
    assert places.limit == pytest.approx(20, rel=0.1)  # 10 a second for 2 seconds
    clock.now += 3600  # nobody searches; the rate is still the best guess
    assert places.limit == pytest.approx(20, rel=0.1)
    answer(places, clock, 50, 1.0)  # it has become slower
    assert places.limit == pytest.approx(4, rel=0.1)
    answer(places, clock, 2000, 0.02)
    assert places.limit == pytest.approx(100, rel=0.1)


def test_who_is_not_admitted_is_refused_at_once():
    places = SearchPlaces(2.0, first=10, clock=Clock())
    with places.take(8), places.take(2):
        assert places.full() and places.taken == 10
        with pytest.raises(UnavailableError), places.take():
            pass
    assert places.taken == 0 and not places.full(10)
    with places.take(32):  # more than the limit: by itself
        assert places.full()


def test_failures_do_not_count_as_answers():
    places = SearchPlaces(2.0, least=4, first=10, clock=(clock := Clock()))
    answer(places, clock, 200, 0.1)
    before = places.limit
    for _ in range(20):
        with places.take():
            clock.now += 0.1
    assert places.limit < 0.7 * before
