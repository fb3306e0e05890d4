"""A lean HTTP client: on a machine that both use, what it costs is taken from the service."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import uvloop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in a lean event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class Session:
    """Posts JSON over connections that stay open; `limit` of them, 0 for as many as are needed."""

    def __init__(self, url: str, limit: int = 0, timeout_s: float = 60):
        address = urlsplit(url)
        self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
        self._timeout_s = timeout_s
        self._free: deque[_Connection] = deque()
        self._all: set[_Connection] = set()
        self._slots = asyncio.Semaphore(limit) if limit else None

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._all:
            connection.transport.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bool, bytes]:
        """The status (0: no answer), whether there is a Retry-After, and the body."""
        if self._slots:
            async with self._slots:
                return await self._post(path, body)
        return await self._post(path, body)

    async def _post(self, path: str, body: bytes) -> tuple[int, bool, bytes]:
        try:
            connection = await self._connection()
        except OSError:
            return 0, False, b""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            answer = await asyncio.wait_for(connection.exchange(head.encode() + body), self._timeout_s)
        except TimeoutError:
            connection.transport.close()
            return 0, False, b""
        if answer[0] and not connection.transport.is_closing():
            self._free.append(connection)
        return answer

    async def _connection(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.transport.is_closing():
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.host, self.port)
        self._all.add(connection)
        return connection


class _Connection(asyncio.Protocol):
    """One request after the other, each with a Content-Length in its answer."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._answer: asyncio.Future[tuple[int, bool, bytes]] | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def exchange(self, request: bytes) -> asyncio.Future[tuple[int, bool, bytes]]:
        self._answer, self._data = asyncio.get_running_loop().create_future(), b""
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) >= length:
            self._finish(int(head[9:12]), b"\r\nretry-after:" in lower, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(0, False, b"")

    def _finish(self, status: int, retry: bool, body: bytes) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result((status, retry, body))


def encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()
