from __future__ import annotations

import asyncio
import threading

import pytest

from vmr_ray.serve.batching import Batcher


def test_what_waits_is_done_together():
    sizes: list[int] = []
    go = threading.Event()

    def call(items: list[int]) -> list[int]:
        sizes.append(len(items))
        go.wait(10)
        return [2 * item for item in items]

    async def ask() -> list[int]:
        batcher = Batcher(call, 4)
        first = asyncio.create_task(batcher(0))
        while not sizes:  # the first one is running
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher(i)) for i in range(1, 8)]
        await asyncio.sleep(0.01)
        go.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(ask()) == [2 * i for i in range(8)]
    assert sizes == [1, 4, 3]


def test_an_error_is_its_batch_s_and_the_next_one_runs():
    def call(items: list[int]) -> list[int]:
        if 0 in items:
            raise ValueError("zero")
        return items

    async def ask() -> None:
        batcher = Batcher(call, 2)
        with pytest.raises(ValueError, match="zero"):
            await batcher(0)
        assert await batcher(1) == 1

    asyncio.run(ask())


def test_who_has_given_up_is_not_worked_for():
    seen: list[int] = []
    go = threading.Event()

    def call(items: list[int]) -> list[int]:
        seen.extend(items)
        go.wait(10)
        return items

    async def ask() -> None:
        batcher = Batcher(call, 8)
        first = asyncio.create_task(batcher(0))
        while not seen:
            await asyncio.sleep(0.001)
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        go.set()
        assert await first == 0 and await stays == 2

    asyncio.run(ask())
    assert seen == [0, 2]
