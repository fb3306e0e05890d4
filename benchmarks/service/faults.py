"""Overload, a killed replica and a replaced checkpoint: what clients see, and how long recovery takes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from benchmarks.common.output import Figures, print_line
from benchmarks.common.processes import descendants, megabytes, named
from benchmarks.common.timing import repeatedly, wait_until
from benchmarks.service.clients import Body, Load, background_load, open_loop, search, service
from benchmarks.service.http import Session, run
from vmr_ray.model.checkpoint import load_network, save_checkpoint
from vmr_ray.serve import local
from vmr_ray.serve.app import assemble

RANKER = "ServeReplica:vmr:Ranker"  # in the command line of the replicas of which there may be several


def overload(url: str, bodies: Sequence[Body], rate: float, seconds: float) -> Figures:
    """Send `rate` requests a second, then wait until a single client is answered as fast as before.

    Its time before the overload is the baseline.
    """
    before = asyncio.run(_alone(url, bodies, 20))
    sizes: list[float] = []
    with repeatedly(lambda: sizes.append(sum(map(megabytes, descendants(os.getpid())))), 1):
        load = run(open_loop(url, bodies, rate, seconds))
    over = time.monotonic()
    while asyncio.run(_alone(url, bodies, 5)) > 2 * before and time.monotonic() - over < 120:
        time.sleep(0.2)
    recovery = time.monotonic() - over
    # The first seconds fill queues and connections; growth after them would go on.
    settled = sizes[len(sizes) // 4 :] or [0.0]
    growth = max(settled[-len(settled) // 4 :]) / settled[0] if settled[0] else 1.0
    figures = {
        "overload_rate": rate,
        "overload_answered_per_s": load.per_second,
        "overload_non_retryable_errors": float(load.non_retryable),
        "overload_refused_p50_ms": float(np.median(load.refused_ms or [0])),
        "overload_refused_p95_ms": float(np.percentile(load.refused_ms or [0], 95)),
        "overload_alone_p50_ms": before,
        "overload_answered_p95_ms": load.percentile(95),
        "overload_memory_growth": growth,
        "overload_recovery_s": recovery,
    }
    print_line(
        f"overload, {rate:.0f} requests/s for {seconds:g} s: {load.counts}; "
        f"{load.per_second:.1f} answers/s, p95 {load.percentile(95):.0f} ms; refused p50 "
        f"{figures['overload_refused_p50_ms']:.0f} ms, p95 {figures['overload_refused_p95_ms']:.0f} ms; "
        f"memory {settled[0]:.0f} -> {settled[-1]:.0f} MB; as fast as before after {recovery:.1f} s"
    )
    return figures


async def _alone(url: str, bodies: Sequence[Body], times: int) -> float:
    """Milliseconds of a query of a single client, the median; infinite if one was not answered."""
    load = Load()
    async with Session(url, 1) as session:
        for turn in range(times):
            await search(session, bodies[turn % len(bodies)], load)
    return load.percentile(50) if load.statuses == {200: times} else float("inf")


def faults(index: Path, bodies: Sequence[Body], port: int, folder: Path) -> Figures:
    """A replica is killed, then the checkpoint is replaced, while four clients search.

    The baseline is what the same clients get before.
    """
    other = folder / "other"
    shutil.copytree(index, other)
    network, info = load_network(other / "checkpoint")
    weights = network.state_dict()
    weights["log_temperature"] = weights["log_temperature"] + 1e-3  # another version, the same answers
    version = save_checkpoint(other / "checkpoint", weights, info).version
    with service(index, port, replicas=2) as url:
        with background_load(url, bodies) as quiet:
            time.sleep(6)
        with background_load(url, bodies) as killed:
            time.sleep(3)
            os.kill(named(os.getpid(), RANKER)[0], signal.SIGKILL)
            began = time.monotonic()
            wait_until(lambda: len(named(os.getpid(), RANKER)) < 2)
            wait_until(lambda: len(named(os.getpid(), RANKER)) >= 2)
            recovery = time.monotonic() - began
            time.sleep(3)
        with background_load(url, bodies) as swapped:
            time.sleep(3)
            began = time.monotonic()
            local.run(assemble({"index": str(other), "auth": "none"}, replicas=2))
            swap = time.monotonic() - began
            time.sleep(3)
        answering = httpx.get(f"{url}readyz").json()["model_version"]
    if answering != version:
        raise RuntimeError(f"the service answers with {answering}, not with the new checkpoint")
    rows = {
        "nothing happens": quiet[0],
        f"a replica is killed; two again after {recovery:.1f} s": killed[0],
        f"the checkpoint is replaced, in {swap:.1f} s": swapped[0],
    }
    for name, load in rows.items():
        print_line(f"{name}: {load.counts}, p95 {load.percentile(95):.0f} ms")
    return {
        "quiet_p95_ms": quiet[0].percentile(95),
        "kill_p95_ms": killed[0].percentile(95),
        "kill_non_retryable_errors": float(killed[0].non_retryable),
        "kill_recovery_s": recovery,
        "swap_p95_ms": swapped[0].percentile(95),
        "swap_failed_requests": float(swapped[0].statuses.total() - swapped[0].statuses[200]),
        "swap_requests": float(swapped[0].statuses.total()),
    }
