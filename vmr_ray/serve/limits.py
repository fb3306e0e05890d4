"""Limits on request bodies before anything parses them, and a header of every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmr_ray.serve.admission import kind_of
from vmr_ray.serve.errors import BUSY, RETRY, StalledError, error_response

MAX_BODY = 1 << 20  # bytes, of all bodies but uploads
_MAX_SEARCH = 1 << 18  # bytes, of a search or a batch of them
_MAX_READERS = 128  # bodies that are read at the same time
_LEAST_RATE = 8 << 10  # bytes a second, of an upload
IDLE_S = 10.0


class BodyLimit:
    """ASGI middleware: passes a request on once its body is here.

    The answer is 413 to a body of too many bytes, whatever its header claims, and 408 to one that is not
    complete after `idle_s` seconds. If too many bodies are on their way, the one that has taken longest is
    answered 503, so that clients that send slowly keep no others out.

    Requests for which `is_streamed` is true are passed on as they come: their route counts the bytes, and
    reading a body that brings fewer than 8 KB a second raises StalledError there.
    """

    def __init__(
        self,
        app: ASGIApp,
        is_streamed: Callable[[Scope], bool],
        idle_s: float = IDLE_S,
        max_readers: int = _MAX_READERS,
    ):
        self.app, self.is_streamed, self.idle_s, self.max_readers = app, is_streamed, idle_s, max_readers
        self._readers: dict[asyncio.Task[bytes | None], None] = {}  # the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self.is_streamed(scope):
            await self.app(scope, _with_least_rate(receive, self.idle_s), send)
        else:
            await self._with_whole_body(scope, receive, send)

    async def _with_whole_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = _MAX_SEARCH if kind_of(scope) == "search" else MAX_BODY
        reader = asyncio.ensure_future(read_body(receive, limit))
        self._readers[reader] = None
        if len(self._readers) > self.max_readers:
            next(iter(self._readers)).cancel()
        try:
            done, _ = await asyncio.wait([reader], timeout=self.idle_s)
        finally:
            del self._readers[reader]
            reader.cancel()  # if the body is late, or this request is cancelled
        if not done:
            refusal = error_response(
                408, f"the body was not complete after {self.idle_s:g} s: send the request again"
            )
        elif reader.cancelled():
            refusal = error_response(503, BUSY, RETRY)
        elif (body := reader.result()) is None:
            refusal = error_response(413, f"the body exceeds {limit} bytes")
        else:
            await self.app(scope, replay(body, receive), send)
            return
        await refusal(scope, receive, send)


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The body of a request; None as soon as it has more than `limit` bytes."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again


def _with_least_rate(receive: Receive, idle_s: float) -> Receive:
    """`receive`, which raises StalledError if less of the body comes than the least rate brings in `idle_s`.

    Only the time in which the client is waited for counts.
    """
    complete = False
    waited, size = 0.0, 0

    async def receive_in_time() -> Message:
        nonlocal complete, waited, size
        if complete:  # the next message is the end of the connection, however late
            return await receive()
        began = time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), idle_s - waited)
        except TimeoutError:
            raise StalledError(
                f"fewer than {_LEAST_RATE >> 10} KB/s came for {idle_s:g} s: send the request again"
            ) from None
        waited += time.monotonic() - began
        size += len(message.get("body", b""))
        if size >= _LEAST_RATE * idle_s:
            waited, size = 0.0, 0
        complete = not message.get("more_body")
        return message

    return receive_in_time


class NoSniff:
    """ASGI middleware: no browser may take an answer for another type than its Content-Type."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        await self.app(scope, receive, send_with_header)
