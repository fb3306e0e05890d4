"""Clients of the service, and what they get back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.service.http import Session, encode
from vmr_ray.serve import local

RETRYABLE = (429, 503)
Body = dict[str, Any]  # of a search request


@contextmanager
def service(index: Path, port: int, **settings: Any) -> Iterator[str]:
    """The service on this machine, until the block ends; yields its URL."""
    from ray import serve

    url = local.start(index, port=port, **settings)
    try:
        yield url
    finally:
        serve.shutdown()


@dataclass
class Load:
    """What clients got: statuses (0: no answer), milliseconds of the answers and of the refusals."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    @property
    def per_second(self) -> float:
        return self.statuses[200] / self.seconds

    @property
    def non_retryable(self) -> int:
        """Requests that were neither answered nor asked to come back later."""
        failed = sum(count for code, count in self.statuses.items() if code not in (200, *RETRYABLE))
        return failed + self.without_retry_after

    @property
    def counts(self) -> str:
        """How many requests ended with which status, in words."""
        names = {0: "without an answer"}
        return ", ".join(
            f"{count} x {names.get(code, code)}" for code, count in sorted(self.statuses.items())
        )

    def percentile(self, percent: float) -> float:
        """Milliseconds of the answers."""
        return float(np.percentile(self.ms, percent)) if self.ms else float("nan")


async def search(session: Session, body: Body, load: Load) -> None:
    began = time.perf_counter()
    status, retry, _ = await session.post("/v1/search", encode(body))
    ms = 1000 * (time.perf_counter() - began)
    load.statuses[status] += 1
    if status == 200:
        load.ms.append(ms)
    elif status in RETRYABLE:
        load.refused_ms.append(ms)
        load.without_retry_after += not retry


async def closed_loop(
    url: str, bodies: Sequence[Body], clients: int, seconds: float, stop: threading.Event | None = None
) -> Load:
    """Every client searches again as soon as it is answered; after a refusal it waits a moment."""
    load, began = Load(), time.monotonic()
    async with Session(url, clients) as session:

        async def client(number: int) -> None:
            turn = number
            while time.monotonic() - began < seconds and not (stop and stop.is_set()):
                before = load.statuses[200]
                await search(session, bodies[turn % len(bodies)], load)
                turn += clients
                if load.statuses[200] == before:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*map(client, range(clients)))
    load.seconds = time.monotonic() - began
    return load


async def open_loop(url: str, bodies: Sequence[Body], rate: float, seconds: float) -> Load:
    """`rate` new requests a second, whether the earlier ones are answered or not."""
    load, began, sent = Load(), time.monotonic(), 0
    async with Session(url) as session, asyncio.TaskGroup() as group:
        while (now := time.monotonic() - began) < seconds:
            for _ in range(int(now * rate) - sent):
                group.create_task(search(session, bodies[sent % len(bodies)], load))
                sent += 1
            await asyncio.sleep(0.01)
    load.seconds = time.monotonic() - began
    return load


@contextmanager
def background_load(url: str, bodies: Sequence[Body], clients: int = 4) -> Iterator[list[Load]]:
    """Clients in the background; what they got is in the list when the block has ended."""
    stop, loads = threading.Event(), list[Load]()

    def run() -> None:
        loads.append(asyncio.run(closed_loop(url, bodies, clients, 300, stop)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield loads
    finally:
        stop.set()
        thread.join()
