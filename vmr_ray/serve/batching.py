"""Calls that come while others are running are made together, as the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Awaitable `await call(items) -> results`, one item a caller; at most `most` items a call and `at_once`
    calls at a time.

    `serve.batch` closes a batch before there is a free place for it, so without a wait its batches hold one
    item however many are queued. Here a batch is what waits when a call before it is done: nobody waits for
    company, and the more there is to do, the larger the batches.
    """

    def __init__(
        self, call: Callable[[list[Item]], Awaitable[Sequence[Result]]], most: int, at_once: int = 1
    ):
        self._call, self._most, self._at_once = call, most, at_once
        self._queue: list[tuple[Item, asyncio.Future[Result]]] = []
        self._workers: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if len(self._workers) < self._at_once:
            # In a context of its own: a call serves many, and must not end with the request that began it.
            self._workers.add(Context().run(asyncio.create_task, self._work()))
        return await future

    async def _work(self) -> None:
        try:
            await self._until_none_waits()
        finally:  # at once, not by a callback: the next item begins a new worker
            self._workers.remove(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _until_none_waits(self) -> None:
        while self._queue:
            taken, self._queue = self._queue[: self._most], self._queue[self._most :]
            batch = [(item, future) for item, future in taken if not future.done()]  # not the cancelled
            if not batch:
                continue
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
    """The same call, which leaves the event loop free."""

    async def run(items: list[Item]) -> Sequence[Result]:
        return await asyncio.to_thread(call, items)

    return run
