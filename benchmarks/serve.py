"""How fast the service answers, how its first stage grows, and what overload, a kill and a swap cost.

    python benchmarks/serve.py --json serve.json                     # renders and trains a small index first
    python benchmarks/serve.py --index INDEX --queries FILE.jsonl    # yours; FILE has `video`, `query`

The parts, each also alone with --only:

* latency: a query within one video, asked in this process and over HTTP, in turn;
* throughput: --clients clients that ask again as soon as they are answered, with batches and without, and
  with two replicas;
* stage1: the nearest 200 segments of 10^4 to 10^6, against exact search. The segments are mixed from the
  index's own: real vectors crowd, and only crowded ones tell what an approximate search misses;
* overload: ten times the throughput for --overload-seconds, whatever comes back;
* faults: two replicas under load, one is killed; then the checkpoint is replaced.

Everything runs on this machine: the clients, too, take from its cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import httpx
import numpy as np
import pyarrow as pa
import typer
from processes import megabytes, named, started_by
from rich.console import Console
from rich.table import Table

from vmr_ray.config import Config, IndexConfig, SearchConfig, TrainConfig
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import load_network, save_checkpoint
from vmr_ray.search.searcher import Searcher
from vmr_ray.search.tables import IndexTables
from vmr_ray.serve import local
from vmr_ray.serve.app import assemble

PARTS = ("latency", "throughput", "stage1", "overload", "faults")
RETRYABLE = (429, 503)
Figures = dict[str, float]
Body = dict[str, Any]
out = Console(width=120)


def main(
    index: Annotated[Path | None, typer.Option(help="index directory; default: made here")] = None,
    queries: Annotated[Path | None, typer.Option(help="JSONL with `video` and `query`")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"repeatable: {', '.join(PARTS)}")] = None,
    clients: Annotated[int, typer.Option(help="clients at one time")] = 32,
    seconds: Annotated[float, typer.Option(help="of a measurement of throughput")] = 15,
    overload_seconds: Annotated[float, typer.Option(help="how long too much is asked")] = 60,
    sizes: Annotated[str, typer.Option(help="numbers of segments")] = "1e4,1e5,1e6",
    port: Annotated[int, typer.Option(help="port of the service")] = 8123,
    json_: Annotated[Path | None, typer.Option("--json", help="write the figures there, flat keys")] = None,
) -> None:
    """Measure, print, and write the figures."""
    if (index is None) != (queries is None):
        raise typer.BadParameter("give both --index and --queries, or neither")
    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
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
            figures |= load(index, bodies, port, clients, seconds, overload_seconds, parts)
        if "faults" in parts:
            figures |= faults(index, bodies, port, Path(folder))
    if json_:
        json_.write_text(json.dumps(figures, indent=1))


def make_index(folder: Path) -> tuple[Path, Path]:
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
        Config(train=TrainConfig(epochs=1000, max_minutes=2)),
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
        asks: dict[str, Callable[[Body], object]] = {
            "in process": lambda body: searcher.search(**body),
            "over HTTP": lambda body: client.post("v1/search", json=body).raise_for_status(),
        }
        for turn in range(-20, times):
            body = bodies[turn % len(bodies)]
            for name, ask in asks.items():
                began = time.perf_counter()
                ask(body)
                if turn >= 0:
                    taken[name].append(1000 * (time.perf_counter() - began))
    table = Table(title=f"{times} queries within one video, one after the other, ms")
    for column in ("", "p50", "p95", "p99"):
        table.add_column(column, justify="right" if column else "left")
    for name, ms in taken.items():
        table.add_row(name, *(f"{np.percentile(ms, q):.1f}" for q in (50, 95, 99)))
    out.print(table)
    inside, http = (statistics.median(ms) for ms in taken.values())
    out.print(f"HTTP / in process, p50: {http / inside:.2f}, {http - inside:.1f} ms more", highlight=False)
    return {
        "inprocess_p50_ms": inside,
        "http_p50_ms": http,
        "http_over_inprocess_p50": http / inside,
        "http_over_1_4_inprocess_ms": http - 1.4 * inside,
    }


@dataclass
class Load:
    """What came back: statuses (0: no answer), milliseconds of the 200s and of the refusals."""

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
        """Neither answered nor told to come back."""
        return sum(n for code, n in self.statuses.items() if code not in (200, *RETRYABLE)) + (
            self.without_retry_after
        )

    def p(self, percent: float) -> float:
        return float(np.percentile(self.ms, percent)) if self.ms else float("nan")


async def ask(session: aiohttp.ClientSession, body: Body, load: Load) -> None:
    began = time.perf_counter()
    try:
        async with session.post("v1/search", json=body) as response:
            await response.read()
            status, retry = response.status, "Retry-After" in response.headers
    except (aiohttp.ClientError, TimeoutError):
        status, retry = 0, True
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
    """Every client asks again as soon as it is answered (or, refused, after a moment)."""
    load, began = Load(), time.monotonic()
    async with _session(url, clients) as session:

        async def client(number: int) -> None:
            turn = number
            while time.monotonic() - began < seconds and not (stop and stop.is_set()):
                before = load.statuses[200]
                await ask(session, bodies[turn % len(bodies)], load)
                turn += clients
                if load.statuses[200] == before:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*map(client, range(clients)))
    load.seconds = time.monotonic() - began
    return load


async def open_loop(url: str, bodies: Sequence[Body], rate: float, seconds: float) -> Load:
    """`rate` new requests a second, whether the earlier ones are answered or not."""
    load, began, sent = Load(), time.monotonic(), 0
    async with _session(url, 0) as session, asyncio.TaskGroup() as group:
        while (now := time.monotonic() - began) < seconds:
            for _ in range(int(now * rate) - sent):
                group.create_task(ask(session, bodies[sent % len(bodies)], load))
                sent += 1
            await asyncio.sleep(0.01)
    load.seconds = time.monotonic() - began
    return load


def _session(url: str, connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url, connector=aiohttp.TCPConnector(limit=connections), timeout=aiohttp.ClientTimeout(60)
    )


def load(
    index: Path,
    bodies: Sequence[Body],
    port: int,
    clients: int,
    seconds: float,
    overload_seconds: float,
    parts: Sequence[str],
) -> Figures:
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
    table = Table(title=f"{clients} clients, queries within one video")
    for column in ("", "answers/s", "p50 ms", "p95 ms", "p99 ms", "statuses"):
        table.add_column(column, justify="right" if column else "left")
    for name, run in runs.items():
        cells = (f"{run.per_second:.1f}", *(f"{run.p(q):.0f}" for q in (50, 95, 99)))
        table.add_row(name, *cells, _told(run.statuses))
    out.print(table)
    figures["throughput"] = runs["in batches"].per_second
    if "throughput" in parts:
        rates = {name: run.per_second for name, run in runs.items()}
        figures["batching_speedup"] = rates["in batches"] / rates["one by one"]
        figures["two_replicas_speedup"] = rates["in batches, 2 replicas"] / rates["in batches"]
        out.print(
            "batches {batching_speedup:.2f}x, two replicas {two_replicas_speedup:.2f}x".format(**figures)
        )
    return figures


def overload(url: str, bodies: Sequence[Body], rate: float, seconds: float) -> Figures:
    """Too much for a while; then how long until a single client is answered as fast as before."""

    async def alone(times: int) -> float:
        found = Load()
        async with _session(url, 1) as session:
            for turn in range(times):
                await ask(session, bodies[turn % len(bodies)], found)
        return found.p(50) if found.statuses == {200: times} else float("inf")

    before = asyncio.run(alone(20))
    sizes: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            sizes.append(sum(map(megabytes, started_by(os.getpid()).values())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run = asyncio.run(open_loop(url, bodies, rate, seconds))
    finally:
        done.set()
        watcher.join()
    over = time.monotonic()
    while asyncio.run(alone(5)) > 2 * before and time.monotonic() - over < 120:
        time.sleep(0.2)
    recovery = time.monotonic() - over
    # The first seconds fill queues and connections; growth after them would go on.
    settled = sizes[len(sizes) // 4 :] or [0.0]
    growth = max(settled[-len(settled) // 4 :]) / settled[0] if settled[0] else 1.0
    figures = {
        "overload_rate": rate,
        "overload_answered_per_s": run.per_second,
        "overload_non_retryable_errors": float(run.non_retryable),
        "overload_refused_p50_ms": float(np.median(run.refused_ms or [0])),
        "overload_refused_p95_ms": float(np.percentile(run.refused_ms or [0], 95)),
        "overload_answered_p95_ms": run.p(95),
        "overload_memory_growth": growth,
        "overload_recovery_s": recovery,
    }
    out.print(
        f"overload, {rate:.0f} requests/s for {seconds:g} s: {_told(run.statuses)}; "
        f"{run.per_second:.1f} answers/s, p95 {run.p(95):.0f} ms; refused p50 "
        f"{figures['overload_refused_p50_ms']:.0f} ms, p95 {figures['overload_refused_p95_ms']:.0f} ms; "
        f"memory {settled[0]:.0f} -> {settled[-1]:.0f} MB; as fast as before after {recovery:.1f} s",
        highlight=False,
    )
    return figures


def faults(index: Path, bodies: Sequence[Body], port: int, folder: Path) -> Figures:
    """A replica dies, and the checkpoint is replaced, while four clients ask."""
    other = folder / "other"
    shutil.copytree(index, other)
    network, info = load_network(other / "checkpoint")
    weights = network.state_dict()
    weights["log_temperature"] = weights["log_temperature"] + 1e-3  # another version, the same answers
    version = save_checkpoint(other / "checkpoint", weights, info).version
    figures: Figures = {}
    with service(index, port, replicas=2) as url:
        with asking(url, bodies) as during:
            time.sleep(3)
            os.kill(named(os.getpid(), "ServeReplica:vmr:Ranker")[0], signal.SIGKILL)
            began = time.monotonic()
            _wait(lambda: len(named(os.getpid(), "ServeReplica:vmr:Ranker")) < 2)
            _wait(lambda: len(named(os.getpid(), "ServeReplica:vmr:Ranker")) >= 2)
            back = time.monotonic() - began
            time.sleep(3)
        killed = during[0]
        with asking(url, bodies) as during:
            time.sleep(3)
            began = time.monotonic()
            local.run(assemble({"index": str(other), "auth": "none"}, replicas=2))
            swapped = time.monotonic() - began
            time.sleep(3)
        swap = during[0]
        told = httpx.get(f"{url}readyz").json()["model_version"]
    if told != version:
        raise RuntimeError(f"the service answers with {told}, not with the new checkpoint")
    out.print(f"a replica killed: {_told(killed.statuses)}; two again after {back:.1f} s", highlight=False)
    out.print(f"checkpoint replaced in {swapped:.1f} s: {_told(swap.statuses)}", highlight=False)
    figures["kill_non_retryable_errors"] = float(killed.non_retryable)
    figures["kill_recovery_s"] = back
    figures["swap_failed_requests"] = float(swap.statuses.total() - swap.statuses[200])
    figures["swap_requests"] = float(swap.statuses.total())
    return figures


@contextmanager
def asking(url: str, bodies: Sequence[Body], clients: int = 4) -> Iterator[list[Load]]:
    """Four clients in the background; what came back is in the list afterwards."""
    stop, found = threading.Event(), []

    def run() -> None:
        found.append(asyncio.run(closed_loop(url, bodies, clients, 300, stop)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def stage1(index: Path, bodies: Sequence[Body], sizes: Sequence[int], folder: Path) -> Figures:
    """Latency and recall of the first stage as the index grows; exact search as the baseline."""
    import lancedb

    searcher = Searcher(index)
    vectors = np.concatenate(
        [np.stack(rows["vector"].to_numpy()) for rows in _segments(searcher)], dtype=np.float32
    )
    texts = list(dict.fromkeys(body["query"] for body in bodies))[:200]
    predictor = searcher.predictor
    asked = predictor.encode_tokens(predictor.text(texts)).vectors.numpy().astype(np.float32)
    wanted, probed = SearchConfig().candidates, SearchConfig().partitions
    rng = np.random.default_rng(0)
    table = Table(title=f"the nearest {wanted} segments, {len(asked)} queries")
    for column in ("segments", "exact p50 ms", "p50 ms", "p95 ms", f"recall@{wanted}", "index built in s"):
        table.add_column(column, justify="right")
    figures: Figures = {}
    connection = lancedb.connect(str(folder / "stage1"))
    for size in sizes:
        rows, nearest = _mixed(vectors, size, rng, asked, wanted)
        segments = connection.create_table("segments", rows, mode="overwrite")
        began = time.monotonic()
        IndexTables.add_vector_index(segments, IndexConfig())
        built = time.monotonic() - began

        def find(query: np.ndarray, exact: bool = False, table: Any = segments) -> tuple[float, set[int]]:
            search = table.search(query).distance_type("dot")
            search = search.bypass_vector_index() if exact else search.nprobes(probed)
            began = time.perf_counter()
            found = search.select(["window_id", "_distance"]).limit(wanted).to_arrow()
            ms = 1000 * (time.perf_counter() - began)
            return ms, {int(name) for name in found["window_id"].to_pylist()}

        for query in asked[:10]:
            find(query)
        exact_ms = [find(query, exact=True)[0] for query in asked[:10]]
        found = [find(query) for query in asked]
        ms = [took for took, _ in found]
        recall = statistics.mean(
            len(mine & best) / len(best) for (_, mine), best in zip(found, nearest, strict=True)
        )
        p50, p95 = np.percentile(ms, [50, 95])
        table.add_row(
            f"{size:,}",
            f"{statistics.median(exact_ms):.1f}",
            f"{p50:.1f}",
            f"{p95:.1f}",
            f"{recall:.3f}",
            f"{built:.0f}",
        )
        power = f"1e{round(np.log10(size))}"
        figures |= {
            f"stage1_exact_p50_ms_{power}": statistics.median(exact_ms),
            f"stage1_p50_ms_{power}": float(p50),
            f"stage1_p95_ms_{power}": float(p95),
            f"stage1_recall_at_{wanted}_{power}": recall,
        }
        figures[f"stage1_recall_at_{wanted}"] = recall  # of the largest
    out.print(table)
    return figures


def _segments(searcher: Searcher) -> Iterator[Any]:
    found = searcher.tables.segments.search().select(["vector"]).limit(None).to_arrow()
    yield from (batch.to_pandas() for batch in found.to_batches())


def _mixed(
    vectors: np.ndarray, size: int, rng: np.random.Generator, asked: np.ndarray, wanted: int
) -> tuple[Iterator[pa.RecordBatch], list[set[int]]]:
    """`size` segments between random pairs of real ones, with a little noise; and the truly nearest ones.

    The rows are made batch by batch, twice alike, so that a million of them never lie in memory.
    """
    seed = int(rng.integers(2**32))
    block, dim = 50_000, vectors.shape[1]

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        random = np.random.default_rng(seed)
        for first in range(0, size, block):
            count = min(block, size - first)
            one, other = (vectors[random.integers(len(vectors), size=count)] for _ in range(2))
            share = random.uniform(0, 0.4, (count, 1)).astype(np.float32)
            made = one * (1 - share) + other * share
            made += 0.02 * random.standard_normal(made.shape, dtype=np.float32)
            yield first, made / np.linalg.norm(made, axis=1, keepdims=True)

    best = np.full((len(asked), 0), 0.0, np.float32)
    names = np.full((len(asked), 0), 0)
    for first, made in blocks():
        best = np.concatenate([best, asked @ made.T], axis=1)
        here = np.broadcast_to(np.arange(first, first + len(made)), (len(asked), len(made)))
        names = np.concatenate([names, here], axis=1)
        keep = np.argpartition(-best, min(wanted, best.shape[1] - 1), axis=1)[:, :wanted]
        best, names = np.take_along_axis(best, keep, 1), np.take_along_axis(names, keep, 1)

    def batches() -> Iterator[pa.RecordBatch]:
        for first, made in blocks():
            yield pa.record_batch(
                {
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(made.reshape(-1)), dim),
                    "window_id": [str(i) for i in range(first, first + len(made))],
                }
            )

    schema = pa.schema([("vector", pa.list_(pa.float32(), dim)), ("window_id", pa.string())])
    return pa.RecordBatchReader.from_batches(schema, batches()), [set(row.tolist()) for row in names]


@contextmanager
def service(index: Path, port: int, **settings: Any) -> Iterator[str]:
    """The service on this machine, then nothing again."""
    from ray import serve

    url = local.start(index, port=port, **settings)
    try:
        yield url
    finally:
        serve.shutdown()


def _wait(until: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.1)


def _told(statuses: Counter[int]) -> str:
    names = {0: "without an answer"}
    return ", ".join(f"{n} x {names.get(code, code)}" for code, n in sorted(statuses.items()))


if __name__ == "__main__":
    typer.run(main)
