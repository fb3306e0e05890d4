"""What runs in Ray Serve's HTTP proxies, before a request reaches a replica of `Api`.

Here it costs least to refuse a search, and only here it is known how fast a client takes its answer: Serve
itself passes on whatever a replica sends, and keeps it in memory for clients that do not read.

Serve calls `middlewares` because RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it (`vmr_ray/cluster.py`).
Without it everything works, too: the replicas have the same limits, but slow readers of whole files cost
memory.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmr_ray.serve.admission import Places, SearchPlaces, kind_of, send_status
from vmr_ray.serve.errors import BUSY, RETRY
from vmr_ray.serve.limits import BodyLimit, NoSniff, read_body, replay
from vmr_ray.serve.streams import PART
from vmr_ray.serve.uploads import is_upload

_WAIT_S = 2.0  # seconds; a little more than a replica's `wait_s`, which knows better how long a search waits
_PIECE = 1 << 16  # bytes of a file that wait for a client at a time
_MAX_FETCHES = 8  # pieces that are on their way from the replicas at a time
_BUSY_BODY = json.dumps({"error": BUSY}).encode()
# Headers by which a client would tell Serve how long to work for it, and to go on when it has left.
_OVERRIDES = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})
# Made once, because refusing has to cost next to nothing.
_REFUSAL: tuple[Message, Message] = (
    {
        "type": "http.response.start",
        "status": 503,
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(_BUSY_BODY)).encode()),
            (b"x-content-type-options", b"nosniff"),
            *((name.lower().encode(), value.encode()) for name, value in RETRY.items()),
        ],
    },
    {"type": "http.response.body", "body": _BUSY_BODY},
)


def middlewares() -> list[Middleware]:
    """What Serve puts around its proxy; each goes around those before it."""
    searches = SearchPlaces(_WAIT_S)
    return [
        Middleware(Pieces),
        Middleware(Places),
        Middleware(TakePlaces, places=searches),
        Middleware(BodyLimit, is_streamed=is_upload),
        Middleware(NoOverrides),
        Middleware(OneShape),
        Middleware(NoSniff),
        Middleware(Door, places=searches),
    ]


class Door:
    """ASGI middleware: refuses searches that could not be answered in time, before anything else is done."""

    def __init__(self, app: ASGIApp, places: SearchPlaces):
        self.app, self._places = app, places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and kind_of(scope) == "search" and self._places.full():
            for message in _REFUSAL:
                await send(message)
        else:
            await self.app(scope, receive, send)


class TakePlaces:
    """ASGI middleware: a search takes its place once its body is here, so that slow bodies take none."""

    def __init__(self, app: ASGIApp, places: SearchPlaces):
        self.app, self._places = app, places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or kind_of(scope) != "search":
            await self.app(scope, receive, send)
        elif self._places.full():
            for message in _REFUSAL:
                await send(message)
        else:
            statuses: list[int] = []
            with self._places.take() as answered:
                await self.app(scope, receive, send_status(send, statuses))
                if statuses and statuses[0] < 500:
                    answered()


class NoOverrides:
    """ASGI middleware: the service's limits hold whatever a client says to Serve in a header."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [(name, value) for name, value in scope["headers"] if name.lower() not in _OVERRIDES]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)


class OneShape:
    """ASGI middleware: errors of Serve itself, such as a replica's death, get the shape of all others."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "/v1/" not in scope["path"]:
            await self.app(scope, receive, send)
            return
        replaced = False

        async def send_json(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 500:
                headers = MutableHeaders(scope=message)
                if not headers.get("content-type", "").startswith("application/json"):
                    replaced = True
                    # A replica that died or is being replaced is there again in a moment.
                    message["status"], text = 503, _BUSY_BODY
                    headers["content-type"] = "application/json"
                    headers["content-length"] = str(len(text))
                    headers.update(RETRY)
            elif replaced:
                if message.get("more_body"):
                    return
                message = {"type": "http.response.body", "body": _BUSY_BODY}
            await send(message)

        await self.app(scope, receive, send_json)


class _Piece(NamedTuple):
    """The answer to a request for a piece of a file."""

    status: int
    headers: Headers
    messages: list[Message]


class Pieces:
    """ASGI middleware: gets a video file from the replicas in pieces, each when the client has taken the one
    before. So a paused player, or a slow download, costs one piece of memory.

    Only a few pieces are fetched at a time, however many clients read: searches share the proxy's and the
    replicas' time with them, and each piece on its way is in the memory of both.
    """

    def __init__(self, app: ASGIApp, piece: int = _PIECE, part: int = PART, max_fetches: int = _MAX_FETCHES):
        self.app, self._piece, self._part = app, piece, part
        self._fetches = asyncio.Semaphore(max_fetches)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope) if scope["type"] == "http" and kind_of(scope) == "stream" else None
        if asked is None:
            await self.app(scope, receive, send)
            return
        is_range, first, end = asked
        await read_body(receive, 0)
        # Sends report nothing when the client has gone.
        gone = asyncio.ensure_future(receive())
        try:
            end = first + self._part if is_range and end is None else end
            piece = await self._get(scope, gone, first, min(first + self._piece, end or 2**62))
            total = int(piece.headers.get("content-range", "/0").rpartition("/")[2])
            if piece.status != 206 or not total:
                for message in piece.messages:
                    await send(message)
                return
            end = min(end or total, total)
            await send(_start(piece, is_range, first, end, total))
            etag = piece.headers["etag"]
            while True:
                body = b"".join(message.get("body", b"") for message in piece.messages[1:])
                first += len(body)
                await send({"type": "http.response.body", "body": body, "more_body": first < end})
                if first >= end or gone.done():
                    return
                piece = await self._get(scope, gone, first, min(first + self._piece, end), etag)
                if piece.status != 206 or piece.headers.get("etag") != etag:
                    raise ConnectionError(f"the file changed, or the service ended, at byte {first}")
        finally:
            gone.cancel()

    async def _get(
        self, scope: Scope, gone: asyncio.Future[Message], first: int, end: int, etag: str | None = None
    ) -> _Piece:
        """The bytes [first, end) of the file."""
        replaced = {b"range", b"if-range", b"if-match"}
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
        headers.append((b"range", f"bytes={first}-{end - 1}".encode()))
        if etag:
            headers.append((b"if-match", etag.encode()))
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        async def wait() -> Message:
            return await asyncio.shield(gone)

        async with self._fetches:
            await self.app({**scope, "headers": headers}, replay(b"", wait), keep)
        start = messages[0]
        return _Piece(start["status"], Headers(raw=list(start["headers"])), messages)


def _asked(scope: Scope) -> tuple[bool, int, int | None] | None:
    """Whether a range is asked for, its first byte, and the byte behind its last one, None if it is open.

    None for what a replica may answer itself: ranges that count from the file's end, and conditions.
    """
    headers = Headers(raw=scope["headers"])
    if "if-range" in headers or "if-match" in headers:
        return None
    asked = headers.get("range")
    if asked is None:
        return False, 0, None
    match = re.fullmatch(r"\s*bytes\s*=\s*([0-9]{1,18})-([0-9]{0,18})\s*", asked)
    if not match or (match[2] and int(match[2]) < int(match[1])):
        return None
    return True, int(match[1]), int(match[2]) + 1 if match[2] else None


def _start(piece: _Piece, is_range: bool, first: int, end: int, total: int) -> Message:
    """The start of the answer with the bytes [first, end), made from that to its first piece."""
    headers = MutableHeaders(raw=list(piece.headers.raw))
    headers["content-length"] = str(end - first)
    if is_range:
        headers["content-range"] = f"bytes {first}-{end - 1}/{total}"
    else:
        del headers["content-range"]
    return {"type": "http.response.start", "status": 206 if is_range else 200, "headers": headers.raw}
