"""Concurrent calls become batches."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from vmr_ray.serve.batching import Batcher, OverdueError, in_thread


def test_items_that_wait_are_sent_together():
    sizes: list[int] = []
    go = threading.Event()

    def call(items: list[int]) -> list[int]:
        sizes.append(len(items))
        go.wait(10)
        return [2 * item for item in items]

    async def run() -> list[int]:
        batcher = Batcher(in_thread(call), 4)
        first = asyncio.create_task(batcher(0))
        while not sizes:  # the first one is running
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher(i)) for i in range(1, 8)]
        await asyncio.sleep(0.01)
        go.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(run()) == [2 * i for i in range(8)]
    assert sizes == [1, 4, 3]


def test_an_error_concerns_its_batch_only():
    def call(items: list[int]) -> list[int]:
        if 0 in items:
            raise ValueError("zero")
        return items

    async def run() -> None:
        batcher = Batcher(in_thread(call), 2)
        with pytest.raises(ValueError, match="zero"):
            await batcher(0)
        assert await batcher(1) == 1

    asyncio.run(run())


def test_cancelled_items_are_not_sent():
    sent: list[int] = []
    go = threading.Event()

    def call(items: list[int]) -> list[int]:
        sent.extend(items)
        go.wait(10)
        return items

    async def run() -> None:
        batcher = Batcher(in_thread(call), 8)
        first = asyncio.create_task(batcher(0))
        while not sent:
            await asyncio.sleep(0.001)
        cancelled, kept = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.sleep(0)
        go.set()
        assert await first == 0 and await kept == 2

    asyncio.run(run())
    assert sent == [0, 2]


def test_calls_and_their_items_are_limited():
    running, peak, sizes = 0, 0, []

    async def call(items: list[int]) -> list[int]:
        nonlocal running, peak
        running, peak = running + 1, max(peak, running + 1)
        sizes.append(len(items))
        await asyncio.sleep(0.01)
        running -= 1
        return items

    async def run() -> list[int]:
        batcher = Batcher(call, 4, max_calls=3)
        asked = [asyncio.create_task(batcher(i)) for i in range(20)]
        await asyncio.sleep(0.005)
        assert batcher.waiting == 20 - sum(sizes)
        return await asyncio.gather(*asked)

    assert asyncio.run(run()) == list(range(20))
    assert peak == 3 and max(sizes) == 4 and sum(sizes) == 20


def test_a_call_outlives_the_request_that_started_it():
    """Serve keeps a request's calls in a context variable, and cancels them when its client disconnects."""
    request: ContextVar[str] = ContextVar("request", default="none")

    async def call(items: list[int]) -> list[str]:
        return [request.get() for _ in items]

    async def run() -> str:
        request.set("mine")
        return await Batcher(call, 1)(0)

    assert asyncio.run(run()) == "none"


def test_what_has_waited_too_long_is_not_called_and_the_newest_come_first():
    calls: list[list[int]] = []

    async def run() -> list[object]:
        go = asyncio.Event()

        async def call(items: list[int]) -> list[int]:
            calls.append(items)
            await go.wait()
            return items

        batcher = Batcher(call, 2, max_wait_s=0.2)
        asked = [asyncio.create_task(batcher(0))]
        await asyncio.sleep(0.01)
        asked.append(asyncio.create_task(batcher(1)))  # overdue when its turn comes
        await asyncio.sleep(0.15)
        asked += [asyncio.create_task(batcher(i)) for i in (2, 3, 4)]
        await asyncio.sleep(0.12)
        assert 0.2 < batcher.longest_call_s < 10
        go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert batcher.longest_call_s == 0
        return answers

    overdue, *answers = sorted(asyncio.run(run()), key=lambda a: isinstance(a, int))
    assert isinstance(overdue, OverdueError) and answers == [0, 2, 3, 4]
    assert calls == [[0], [3, 4], [2]]
