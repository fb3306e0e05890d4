"""Calls that come while one is running are made together, as the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Awaitable `call(items) -> results`, one item a caller; `call` runs in a thread, `most` items at a time.

    `serve.batch` closes a batch before there is a free place for it, so without a wait its batches hold one
    item however many are queued. Here a batch is what waits when the one before it is done: nobody waits for
    company, and the more there is to do, the larger the batches.
    """

    def __init__(self, call: Callable[[list[Item]], Sequence[Result]], most: int):
        self._call, self._most = call, most
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            batch = [(item, future) for item, future in taken if not future.done()]  # not the cancelled
            if not batch:
                continue
            try:
                results = await asyncio.to_thread(self._call, [item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
