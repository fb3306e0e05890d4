"""How fast the service answers, how its first stage grows, and what overload, a kill and a swap cost.

    python -m benchmarks.serve --json serve.json                     # renders and trains a small index first
    python -m benchmarks.serve --index INDEX --queries FILE.jsonl    # yours; FILE has `video`, `query`

The parts, each also alone with --only:

* latency: a query within one video, in this process (the baseline) and over HTTP, in turn;
* throughput: --clients clients that search again as soon as they are answered: one by one (the baseline), in
  batches, and with two replicas;
* stage1: the nearest 200 segments of 10^4 to 10^6, compared with exact search. The segments are mixed from
  the index's own: real vectors crowd, and only crowded ones show what an approximate search misses;
* overload: ten times the throughput for --overload-seconds, whatever comes back;
* abuse: the dearest request that is allowed, 100 clients that send a byte now and then, 64 viewers that
  pause, ten times the throughput, and a killed writer; how long others wait meanwhile;
* faults: two replicas under load, one is killed; then the checkpoint is replaced.

Everything runs on this machine: the clients, too, use its cores.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from benchmarks.common.output import (
    Figures,
    JsonOption,
    print_line,
    print_table,
    run_command,
    write_figures,
)
from benchmarks.service.abuse import abuse
from benchmarks.service.clients import Body, Load, closed_loop, service
from benchmarks.service.faults import faults, overload
from benchmarks.service.stage1 import stage1
from vmr_ray.cluster import quiet
from vmr_ray.config import Config, TrainConfig
from vmr_ray.errors import VmrError
from vmr_ray.search.searcher import Searcher

PARTS = ("latency", "throughput", "stage1", "overload", "faults", "abuse")
EPOCHS = 20  # of the small index's training: enough for scores that differ


def main(
    index: Annotated[Path | None, typer.Option(help="index directory; default: made here")] = None,
    queries: Annotated[Path | None, typer.Option(help="JSONL with `video` and `query`")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"repeatable: {', '.join(PARTS)}")] = None,
    clients: Annotated[int, typer.Option(help="clients at the same time")] = 32,
    seconds: Annotated[float, typer.Option(help="how long throughput is measured")] = 15,
    overload_seconds: Annotated[float, typer.Option(help="how long the overload lasts")] = 60,
    sizes: Annotated[str, typer.Option(help="numbers of segments of stage1")] = "1e4,1e5,1e6",
    port: Annotated[int, typer.Option(help="port of the service")] = 8123,
    json_: JsonOption = None,
) -> None:
    """Measure, print, and write the figures."""
    quiet()
    if (index is None) != (queries is None):
        raise VmrError("give both --index and --queries, or neither")
    if unknown := set(only or ()) - set(PARTS):
        raise VmrError(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    parts = only or PARTS
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="vmr-serve-") as folder:
        if index is None or queries is None:
            index, queries = make_index(Path(folder))
        bodies = read_bodies(index, queries)
        if "stage1" in parts:
            figures |= stage1(index, bodies, [int(float(n)) for n in sizes.split(",")], Path(folder))
        if "latency" in parts:
            figures |= latency(index, bodies, port)
        if {"throughput", "overload"} & set(parts):
            figures |= throughput(index, bodies, port, clients, seconds, overload_seconds, parts)
        if "abuse" in parts:
            figures |= abuse(index, bodies, port, Path(folder), clients, seconds, overload_seconds)
        if "faults" in parts:
            figures |= faults(index, bodies, port, Path(folder))
    write_figures(json_, figures)


def make_index(folder: Path) -> tuple[Path, Path]:
    """A small index of the demo's world, and its test queries."""
    from vmr_ray.demo.world import render_world
    from vmr_ray.embedding.embed import embed
    from vmr_ray.search.build import build_index
    from vmr_ray.training.train import train

    world = render_world(folder / "world", train_videos=48, test_videos=12)
    embed([world.videos], folder / "features")
    run = train(
        folder / "features",
        world.train,
        folder / "run",
        Config(train=TrainConfig(epochs=EPOCHS)),
    )
    build_index(folder / "features", run.best, folder / "index")
    return folder / "index", world.test


def read_bodies(index: Path, queries: Path) -> list[Body]:
    """A search within its own video for every query whose video is indexed, in random order."""
    from vmr_ray.annotations.video_ids import resolve_ids

    rows = [json.loads(line) for line in queries.open()]
    ids = resolve_ids({row["video"] for row in rows}, [v["video_id"] for v in Searcher(index).videos()])
    bodies = [
        {"query": row["query"], "top_k": 5, "video_ids": [ids[row["video"]]]}
        for row in rows
        if row["video"] in ids
    ]
    if not bodies:
        raise VmrError(f"no video of {queries} is in {index}: check the file names")
    return [bodies[i] for i in np.random.default_rng(0).permutation(len(bodies))]


def latency(index: Path, bodies: Sequence[Body], port: int, times: int = 300) -> Figures:
    """In turn, so that both see the same machine."""
    searcher = Searcher(index)
    with service(index, port) as url, httpx.Client(base_url=url, timeout=60) as client:
        taken: dict[str, list[float]] = {"in process": [], "over HTTP": []}
        searches: dict[str, Callable[[Body], object]] = {
            "in process": lambda body: searcher.search(**body),
            "over HTTP": lambda body: client.post("v1/search", json=body).raise_for_status(),
        }
        for turn in range(-20, times):
            body = bodies[turn % len(bodies)]
            for name, search in searches.items():
                began = time.perf_counter()
                search(body)
                if turn >= 0:
                    taken[name].append(1000 * (time.perf_counter() - began))
    rows = [(name, *(f"{np.percentile(ms, q):.1f}" for q in (50, 95, 99))) for name, ms in taken.items()]
    print_table(f"{times} queries within one video, one after the other, ms", ("", "p50", "p95", "p99"), rows)
    inside, http = (statistics.median(ms) for ms in taken.values())
    print_line(f"HTTP / in process, p50: {http / inside:.2f}, {http - inside:.1f} ms more")
    return {
        "inprocess_p50_ms": inside,
        "http_p50_ms": http,
        "http_over_inprocess_p50": http / inside,
        "http_over_1_4_inprocess_ms": http - 1.4 * inside,
    }


def throughput(
    index: Path,
    bodies: Sequence[Body],
    port: int,
    clients: int,
    seconds: float,
    overload_seconds: float,
    parts: Sequence[str],
) -> Figures:
    """Answers a second of each way to deploy; and the overload, whose rate is ten times that."""
    figures: Figures = {}
    runs: dict[str, Load] = {}
    setups: dict[str, dict[str, Any]] = {
        "one by one": {"batch_size": 1},
        "in batches": {},
        "in batches, 2 replicas": {"replicas": 2},
    }
    if "throughput" not in parts:
        del setups["one by one"], setups["in batches, 2 replicas"]
    for name, settings in setups.items():
        with service(index, port, **settings) as url:
            asyncio.run(closed_loop(url, bodies, clients, 3))
            runs[name] = asyncio.run(closed_loop(url, bodies, clients, seconds))
            if name == "in batches" and "overload" in parts:
                figures |= overload(url, bodies, 10 * runs[name].per_second, overload_seconds)
    rows = []
    for name, run in runs.items():
        cells = [f"{run.percentile(q):.0f}" for q in (50, 95, 99)]
        rows.append((name, f"{run.per_second:.1f}", *cells, run.counts))
    columns = ("", "answers/s", "p50 ms", "p95 ms", "p99 ms", "statuses")
    print_table(f"{clients} clients, queries within one video", columns, rows)
    figures["throughput"] = runs["in batches"].per_second
    if "throughput" in parts:
        rates = {name: run.per_second for name, run in runs.items()}
        figures["batching_speedup"] = rates["in batches"] / rates["one by one"]
        figures["two_replicas_speedup"] = rates["in batches, 2 replicas"] / rates["in batches"]
        print_line(
            "batches {batching_speedup:.2f}x, two replicas {two_replicas_speedup:.2f}x".format(**figures)
        )
    return figures


if __name__ == "__main__":
    run_command(main)
