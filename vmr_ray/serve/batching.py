"""Coalesces concurrent calls: items that arrive during a call are sent together in the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from math import inf
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class OverdueError(Exception):
    """An item waited too long for a call."""


class Batcher(Generic[Item, Result]):
    """Callers await `batcher(item)`; `call(items) -> results` gets up to `max_items` of their items at once,
    and up to `max_calls` calls run at a time. If a call raises, all its callers get the error.

    `serve.batch` closes a batch before a call is free to take it, so without a waiting time its batches have
    one item however many are queued. Here a batch is closed when a call becomes free: no item waits for
    others to come, and under load batches grow.

    With `max_wait_s` an item that has waited longer gets OverdueError instead of a call. Once the oldest has
    waited half as long, the newest are called first: they can still be answered in time.
    """

    def __init__(
        self,
        call: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        max_items: int,
        max_calls: int = 1,
        max_wait_s: float = inf,
    ):
        self._call, self._max_items, self._max_calls = call, max_items, max_calls
        self._max_wait_s = max_wait_s
        self._queue: list[tuple[Item, asyncio.Future[Result], float]] = []
        self._began: dict[asyncio.Task[None], float] = {}
        self._workers: set[asyncio.Task[None]] = set()

    @property
    def longest_call_s(self) -> float:
        """For how long the longest of the running calls has run; 0 if none runs."""
        return time.monotonic() - min(self._began.values()) if self._began else 0.0

    @property
    def waiting(self) -> int:
        """How many items wait for a call."""
        return len(self._queue)

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future, time.monotonic()))
        if len(self._workers) < self._max_calls:
            # In an empty context, because Serve cancels the calls made in a request's own context when its
            # client disconnects, and this worker serves other requests too.
            self._workers.add(Context().run(asyncio.create_task, self._work()))
        return await future

    async def _work(self) -> None:
        try:
            while self._queue:
                await self._call_next()
        finally:  # not in a callback, which runs later: the next item must start a new worker
            self._workers.remove(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _call_next(self) -> None:
        batch = self._next_batch()
        if not batch:
            return
        worker = cast("asyncio.Task[None]", asyncio.current_task())
        self._began[worker] = time.monotonic()
        try:
            results = await self._call([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        finally:
            del self._began[worker]

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        now = time.monotonic()
        waiting = []  # without the cancelled
        for item, future, since in self._queue:
            if now - since > self._max_wait_s and not future.done():
                future.set_exception(OverdueError())
            elif not future.done():
                waiting.append((item, future, since))
        if waiting and now - waiting[0][2] > self._max_wait_s / 2:
            first = max(0, len(waiting) - self._max_items)
            taken, self._queue = waiting[first:], waiting[:first]
        else:
            taken, self._queue = waiting[: self._max_items], waiting[self._max_items :]
        return [(item, future) for item, future, _ in taken]


def in_thread(
    call: Callable[[list[Item]], Sequence[Result]],
) -> Callable[[list[Item]], Awaitable[Sequence[Result]]]:
    """`call` as a coroutine function that runs it in a thread and leaves the event loop free."""

    async def run(items: list[Item]) -> Sequence[Result]:
        return await asyncio.to_thread(call, items)

    return run
