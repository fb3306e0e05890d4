from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest
from aiohttp import web

from benchmarks.common.processes import free_port
from benchmarks.service.clients import Load, closed_loop, open_loop
from benchmarks.service.stage1 import Mix


def test_the_nearest_of_a_mix_are_those_of_a_full_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.service.stage1.BLOCK", 70)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((30, 8)).astype(np.float32)
    mix = Mix(vectors, 250, seed=1)
    blocks = list(mix.blocks())
    assert [first for first, _ in blocks] == [0, 70, 140, 210]
    segments = np.concatenate([block for _, block in blocks])
    assert np.linalg.norm(segments, axis=1) == pytest.approx(np.ones(250))
    queries = random.standard_normal((5, 8)).astype(np.float32)
    expected = [set(row.tolist()) for row in np.argsort(-(queries @ segments.T), axis=1)[:, :9]]
    assert mix.nearest(queries, 9) == expected
    table = mix.reader().read_all()
    assert table["window_id"].to_pylist() == [str(i) for i in range(250)]
    assert np.array_equal(np.stack(table["vector"].to_pandas().to_numpy()), segments)


def test_refusals_are_no_errors_unless_they_lack_retry_after() -> None:
    load = Load(seconds=2, statuses=Counter({200: 6, 429: 3, 503: 2, 500: 1, 0: 1}), without_retry_after=2)
    assert (load.per_second, load.non_retryable) == (3, 4)
    assert load.counts == "1 x without an answer, 6 x 200, 3 x 429, 1 x 500, 2 x 503"


def test_clients_count_what_they_get() -> None:
    """A server that answers, refuses and fails in turn."""
    turns = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal turns
        turns += 1
        assert (await request.json())["query"] == "a dog"
        status = (200, 429, 503, 500)[turns % 4]
        return web.Response(status=status, headers={"Retry-After": "1"} if status == 429 else {})

    async def measured() -> tuple[Load, Load]:
        app = web.Application()
        app.router.add_post("/v1/search", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            url, bodies = f"http://127.0.0.1:{port}/", [{"query": "a dog"}]
            return await closed_loop(url, bodies, 2, 0.5), await open_loop(url, bodies, 100, 0.5)
        finally:
            await runner.cleanup()

    for load in asyncio.run(measured()):
        assert set(load.statuses) == {200, 429, 503, 500}
        assert load.non_retryable == load.statuses[500] + load.statuses[503]  # 503 came without Retry-After
        assert len(load.ms) == load.statuses[200]
        assert len(load.refused_ms) == load.statuses[429] + load.statuses[503]
