"""Coalesces concurrent calls: items that arrive during a call are sent together in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Callers await `batcher(item)`; `call(items) -> results` gets up to `max_items` of their items at once,
    and up to `max_calls` calls run at a time. If a call raises, all its callers get the error.

    `serve.batch` closes a batch before a call is free to take it, so without a waiting time its batches have
    one item however many are queued. Here a batch is closed when a call becomes free: no item waits for
    others to come, and under load batches grow.
    """

    def __init__(
        self, call: Callable[[list[Item]], Awaitable[Sequence[Result]]], max_items: int, max_calls: int = 1
    ):
        self._call, self._max_items, self._max_calls = call, max_items, max_calls
        self._queue: list[tuple[Item, asyncio.Future[Result]]] = []
        self._workers: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many items wait for a call."""
        return len(self._queue)

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
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
        taken, self._queue = self._queue[: self._max_items], self._queue[self._max_items :]
        batch = [(item, future) for item, future in taken if not future.done()]  # without the cancelled
        if not batch:
            return
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


def in_thread(
    call: Callable[[list[Item]], Sequence[Result]],
) -> Callable[[list[Item]], Awaitable[Sequence[Result]]]:
    """`call` as a coroutine function that runs it in a thread and leaves the event loop free."""

    async def run(items: list[Item]) -> Sequence[Result]:
        return await asyncio.to_thread(call, items)

    return run
