"""Who is let in: places by kind of request, and searches only as fast as they are answered."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import exp
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmr_ray.serve.errors import BUSY, RETRY, UnavailableError, error_response

Kind = Literal["search", "upload", "stream", "picture", "operation", "other"]

# How many requests of a kind a process has at a time. Searches are admitted by `SearchPlaces`.
PLACES: Mapping[Kind, int] = {"upload": 16, "stream": 256, "picture": 32, "operation": 16, "other": 64}
_PATHS: tuple[tuple[Kind, str, re.Pattern[str]], ...] = (
    ("search", "POST", re.compile(r"/v1/search(:batch)?$")),
    ("upload", "POST", re.compile(r"/v1/videos$")),
    ("stream", "GET", re.compile(r"/v1/videos/.+/stream$")),
    ("picture", "GET", re.compile(r"/v1/videos/.+/(thumbnail|clip)$")),
    ("operation", "GET", re.compile(r"/(healthz|readyz|metrics)$")),
)
_MEMORY_S = 3.0  # seconds: how quickly the measured rate follows the real one


def kind_of(scope: Scope) -> Kind:
    """The kind of a request, by its method and the end of its path."""
    for kind, method, pattern in _PATHS:
        if scope["method"] == method and pattern.search(scope["path"]):
            return kind
    return "other"


class Places:
    """ASGI middleware: each kind of request has places of its own, and 503 is the answer when they are full.

    So people who watch videos or upload them leave the searches alone.
    """

    def __init__(self, app: ASGIApp, places: Mapping[Kind, int] = PLACES):
        self.app, self._places = app, places
        self._taken: Counter[Kind] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = kind_of(scope) if scope["type"] == "http" else None
        limit = self._places.get(kind) if kind else None
        if kind is None or limit is None:
            await self.app(scope, receive, send)
        elif self._taken[kind] >= limit:
            await error_response(503, BUSY, RETRY)(scope, receive, send)
        else:
            self._taken[kind] += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self._taken[kind] -= 1


class SearchPlaces:
    """Admits as many searches as are answered within `wait_s` seconds, by the rate of the last seconds.

    What could not be answered in time is refused at once, instead of waiting and failing. A request takes a
    place for each of its searches.
    """

    def __init__(
        self,
        wait_s: float,
        least: int = 16,
        first: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            least: as many are always admitted: a batch of them costs little more than one.
            first: as many are admitted before the rate is known.
        """
        self._wait_s, self._least, self._first, self._clock = wait_s, least, first, clock
        self.taken = 0
        self._answered, self._busy_s, self._then, self._known = 0.0, 0.0, clock(), 0

    @property
    def limit(self) -> float:
        """How many may be in the service now."""
        if self._known < self._least:
            return self._first
        return max(self._least, self._wait_s * self._answered / max(self._busy_s, 1e-6))

    def full(self, searches: int = 1) -> bool:
        """Whether a request would be refused. One is never refused by an idle service."""
        return self.taken > 0 and self.taken + searches > self.limit

    @contextmanager
    def take(self, searches: int = 1) -> Iterator[Callable[[], None]]:
        """Hold places; the function that it yields is to be called when the searches were answered.

        Raises:
            UnavailableError: there are not enough places.
        """
        if self.full(searches):
            raise UnavailableError
        self._pass_time()
        self.taken += searches
        answered = 0

        def answer() -> None:
            nonlocal answered
            answered = searches

        try:
            yield answer
        finally:
            self._pass_time()
            self.taken -= searches
            self._answered += answered
            self._known += answered

    def _pass_time(self) -> None:
        """Count the time in which somebody waited; what lies back counts less and less."""
        now = self._clock()
        if self.taken:
            passed = now - self._then
            kept = exp(-passed / _MEMORY_S)
            self._answered *= kept
            self._busy_s = self._busy_s * kept + _MEMORY_S * (1 - kept)
        self._then = now


def send_status(send: Send, seen: list[int]) -> Send:
    """`send`, which adds the status of the answer to `seen`."""

    async def send_seen(message: Message) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])
        await send(message)

    return send_seen
