"""Bounds on request bodies, before anything parses them: their size, and how long nothing may come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class StalledError(Exception):
    """A sender stopped in the middle of a body."""


class BodyLimit:
    """ASGI middleware: a body above `limit` bytes is answered with 413, whatever its header claims; one of
    which nothing comes for `idle_s` seconds with 408.

    Requests for which `streamed` is true are not counted: their route does, and sees a StalledError.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        idle_s: float = 30.0,
        streamed: Callable[[Scope], bool] = lambda _: False,
    ):
        self.app, self.limit, self.idle_s, self.streamed = app, limit, idle_s, streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        complete = False

        async def in_time() -> Message:
            nonlocal complete
            if complete:  # what comes now is the end of the connection, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.idle_s)
            except TimeoutError:
                raise StalledError(f"nothing came for {self.idle_s:g} s: send the request again") from None
            complete = not message.get("more_body")
            return message

        if self.streamed(scope):
            await self.app(scope, in_time, send)
            return
        body = bytearray()
        while True:
            try:
                message = await in_time()
            except StalledError as error:
                await JSONResponse({"error": str(error)}, status_code=408)(scope, receive, send)
                return
            body += message.get("body", b"")
            if len(body) > self.limit:
                refusal = JSONResponse({"error": f"the body exceeds {self.limit} bytes"}, status_code=413)
                await refusal(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)
