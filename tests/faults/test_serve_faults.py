"""The service under overload, and when a replica dies."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.common.processes import descendants, free_port

BODY = {"query": "the red ball spins", "top_k": 3}


@pytest.fixture(scope="module")
def url(index: Path) -> Iterator[str]:
    from ray import serve

    from vmr_ray.serve.local import start

    yield start(index, port=free_port())
    serve.shutdown()


def ranker_pids() -> list[int]:
    pids = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            if "ServeReplica:vmr:Ranker" in Path(f"/proc/{pid}/cmdline").read_text():
                pids.append(pid)
    return pids


def place(moment: dict) -> tuple[str, float, float]:
    return moment["video_id"], moment["start"], moment["end"]


async def post_many(
    url: str, count: int, path: str = "v1/search", body: dict[str, Any] = BODY
) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(client.post(path, json=body) for _ in range(count)))


def test_an_interrupt_while_it_starts_leaves_no_service(index: Path):
    """Before the module's service, in whose place this one would be."""
    from ray import serve

    from vmr_ray.serve.local import start

    def interrupt() -> None:
        while not serve.status().applications:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    watching = threading.Thread(target=interrupt, daemon=True)
    # Where this test was started in the background, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watching.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start(index, port=free_port())
        watching.join()
        assert serve.status().applications == {}
    finally:
        signal.signal(signal.SIGINT, before)
        serve.shutdown()  # Serve would keep this port, and the module's service has another one


def test_under_overload_some_are_refused_and_the_rest_answered(url: str):
    expected = httpx.post(f"{url}v1/search", json=BODY, timeout=60).json()["results"]
    responses = asyncio.run(post_many(url, 500))
    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) == {200, 503}, statuses
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
        else:
            # In a batch the last digits of a score may differ.
            assert [place(m) for m in response.json()["results"]] == [place(m) for m in expected]
    # A request may have many searches, which are counted one by one.
    responses = asyncio.run(post_many(url, 30, "v1/search:batch", {"searches": [BODY] * 32}))
    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) == {200, 503}, statuses
    assert all(len(r.json()["responses"]) == 32 for r in responses if r.status_code == 200)
    # Afterwards it answers as before.
    assert httpx.post(f"{url}v1/search", json=BODY, timeout=60).status_code == 200


def test_a_killed_ranker_is_replaced(url: str):
    (before,) = ranker_pids()
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=60) as client:
        for turn in range(20):
            if turn == 5:
                os.kill(before, signal.SIGKILL)
            statuses[client.post("v1/search", json=BODY).status_code] += 1
        assert set(statuses) <= {200, 503} and statuses[200] >= 5, statuses
        for _ in range(120):
            if client.get("readyz").status_code == 200:
                break
            time.sleep(0.5)
        assert client.post("v1/search", json=BODY).status_code == 200
    assert ranker_pids() != [before]
