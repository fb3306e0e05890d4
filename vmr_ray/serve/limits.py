"""Limits on request bodies before anything parses them, and a header of every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmr_ray.serve.errors import StalledError, error_response


class BodyLimit:
    """ASGI middleware: answers 413 to a body of more than `limit` bytes, whatever its header claims, and 408
    if no byte of the body comes for `idle_s` seconds.

    Requests for which `is_streamed` is true are passed on as they come: their route counts the bytes, and
    reading a body that stalls raises StalledError there.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        idle_s: float = 30.0,
        is_streamed: Callable[[Scope], bool] = lambda _: False,
    ):
        self.app, self.limit, self.idle_s, self.is_streamed = app, limit, idle_s, is_streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        receive_in_time = self._with_timeout(receive)
        if self.is_streamed(scope):
            await self.app(scope, receive_in_time, send)
            return
        body = bytearray()
        while True:
            try:
                message = await receive_in_time()
            except StalledError as error:
                await error_response(408, str(error))(scope, receive, send)
                return
            body += message.get("body", b"")
            if len(body) > self.limit:
                refusal = error_response(413, f"the body exceeds {self.limit} bytes")
                await refusal(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)

    def _with_timeout(self, receive: Receive) -> Receive:
        """`receive`, which raises StalledError if a part of the body does not come in time."""
        complete = False

        async def receive_in_time() -> Message:
            nonlocal complete
            if complete:  # the next message is the end of the connection, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.idle_s)
            except TimeoutError:
                raise StalledError(f"nothing came for {self.idle_s:g} s: send the request again") from None
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
