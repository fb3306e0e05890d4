"""What an archive of any size takes: nodes, hours, bytes and dollars, and what breaks first.

    python benchmarks/scaling.py --json scaling.json                # about 13 minutes; --quick: about 4
    python benchmarks/scaling.py --hours 1e6 --queries 50 --node-price 0.25

Measured here, on one core and on all: what a worker needs for a video and for each second of it, with its
decoding, encoding and writing apart; what the driver needs for a task and for a chunk that comes back; what
Ray's own processes take of the cores; what a query and an indexed window cost. These feed a discrete-event
simulation of the embedding: workers that start late, take the longest part first through one driver, are
lost and replaced.

The simulation is first asked for runs of `vmr embed` that are measured here too: other numbers of videos,
other lengths, one core and all. `max_relative_error` is the largest difference. Then it is asked for 1 to
1,000 nodes. All else (losses, boot time, prices) is an assumption: an option with its value printed.
"""

from __future__ import annotations

import heapq
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import typer
from media import render, repeat
from processes import started_by
from rich.console import Console
from rich.table import Table

from vmr_ray.config import EmbedConfig, ModelConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.embedding.stages import PART_SCHEMA, DecodeEncodeWrite
from vmr_ray.encoders import default_text_encoder, frame_spec, text_encoder
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo, save_checkpoint
from vmr_ray.schema import Chunk, StoreSpec, Video
from vmr_ray.video.sources import find_videos

ENCODER = "efficientnet-lite0"
SHORT, LONG = 10, 60  # seconds of the two files that a worker is measured with
PARTS = 200_000  # parts of videos that are simulated one by one; what is more goes on at the same rate
Figures = dict[str, float]
out = Console(width=120)


@dataclass(frozen=True)
class Costs:
    """Seconds of one core, but for `startup` (of the clock)."""

    startup: float  # until the first result, over a video's own cost
    video: float  # for a video, whatever its length
    decode: float  # for a second of video
    encode: float  # for a second of video
    write: float  # for a second of video
    task: float  # of the driver, for a video or a part
    chunk: float  # of the driver, for each chunk that comes back

    def part(self, seconds: float) -> float:
        return self.video + seconds * (self.decode + self.encode + self.write)


@dataclass(frozen=True)
class Cluster:
    nodes: int
    cores: int  # of a node
    speed: float = 1.0  # of a core, next to what else runs on it
    boot: float = 0.0  # seconds until a new node works
    lifetime: float = math.inf  # mean seconds until a node is lost


def simulate(parts: Sequence[float], cluster: Cluster, costs: Costs, chunk: float, seed: int = 0) -> float:
    """Seconds until all parts are embedded.

    One driver hands out the parts, the longest first, and takes back their chunks; each core works on one
    part at a time; a lost node's parts are handed out again, and its successor begins `boot` later.

    Args:
        parts: seconds of video of each part.
        chunk: seconds of video of one chunk.
    """
    draw, waiting, unfinished = Random(seed), sorted(parts), len(parts)
    events: list[tuple[float, int, int, float | None]] = []  # time, order, node, part done (None: node lost)
    lost_at: list[float] = []  # of every node there has been
    order, driver, end = 0, 0.0, 0.0

    def happens(at: float, node: int, part: float | None) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (at, order, node, part))

    def start(at: float) -> None:
        node = len(lost_at)
        lost_at.append(
            at + draw.expovariate(1 / cluster.lifetime) if cluster.lifetime < math.inf else math.inf
        )
        for _ in range(cluster.cores):
            happens(at, node, 0.0)
        if lost_at[node] < math.inf:
            happens(lost_at[node], node, None)

    for _ in range(cluster.nodes):
        start(costs.startup + cluster.boot)
    idle: list[int] = []
    while unfinished:
        now, _, node, part = heapq.heappop(events)
        if part is None:
            start(now + cluster.boot + costs.startup)
        elif now >= lost_at[node]:
            waiting.append(part)  # it died at this one
        else:
            if part:
                driver = max(driver, now) + costs.chunk * math.ceil(part / chunk)
                end, unfinished = max(end, driver), unfinished - 1
            idle.append(node)
        while waiting and idle:
            node = idle.pop()
            if now >= lost_at[node]:
                continue
            driver = max(driver, now) + costs.task
            part = waiting.pop()
            happens(min(driver + costs.part(part) / cluster.speed, lost_at[node]), node, part)
    return end


# --- What is measured ---


def measure_worker(files: dict[int, str], cores: int) -> dict[str, float]:
    """A worker's seconds, while as many as there are cores do the same."""
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_work, [files] * cores))
    return {key: float(np.mean([each[key] for each in found])) for key in found[0]}


def _work(files: dict[int, str]) -> dict[str, float]:
    """Decoding, encoding and writing a file, in this process, as `vmr embed` does."""
    spent = {}
    with tempfile.TemporaryDirectory() as folder:
        _, dim = frame_spec(ENCODER)
        config = EmbedConfig(encoder=ENCODER)
        store = FeatureStore.create(folder, StoreSpec(ENCODER, dim, config.decode.sampling))
        worker = DecodeEncodeWrite(config, store.root)
        for seconds, path in files.items():
            (video,) = find_videos([path])
            _timed(worker, video)  # the first of a kind is slower: the decoder starts, caches fill
            spent[seconds] = np.median([_timed(worker, video) for _ in range(3)], axis=0)
    slope = (spent[LONG] - spent[SHORT]) / (LONG - SHORT)
    fixed = max(0.0, float((spent[SHORT] - slope * SHORT).sum()))
    return {"video": fixed, "decode": slope[0], "encode": slope[1], "write": slope[2]}


def _timed(worker: DecodeEncodeWrite, video: Video) -> tuple[float, float, float]:
    import pyarrow as pa

    row = pa.Table.from_pylist([asdict(video) | {"part": 0, "parts": 1}], schema=PART_SCHEMA)
    decode = encode = write = 0.0
    began = time.perf_counter()
    for frames in worker.decode(row):
        decoded = time.perf_counter()
        for features in worker.encode(frames):
            encoded = time.perf_counter()
            worker.write(features)
            written = time.perf_counter()
        decode, encode, write = (
            decode + decoded - began,
            encode + encoded - decoded,
            write + written - encoded,
        )
        began = time.perf_counter()
    return decode, encode, write


def session(cores: int, files: dict[int, str], shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """On the first `cores` of this process's: a worker's costs, the driver's, and runs of `vmr embed`.

    In a process of its own, since Ray's processes inherit its cores.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    worker = measure_worker({seconds: files[seconds] for seconds in (SHORT, LONG)}, cores)
    from vmr_ray.cluster import connect

    connect(address="local", num_cpus=cores, include_dashboard=False)
    _rows(8, 1)
    taken, polls = _beside(cores)
    few, many, wide = _rows(20, 1), _rows(220, 1), _rows(20, 21)
    task = (many - few).of_driver(polls) / 200
    chunk = (wide - few).of_driver(polls) / (20 * 20)
    _embedded(files[SHORT], 1)
    one = worker["video"] + SHORT * (worker["decode"] + worker["encode"] + worker["write"])
    startup = _embedded(files[SHORT], cores) - one / (1 - taken / cores)
    costs = Costs(startup=max(0.0, startup), task=max(0.0, task), chunk=max(0.0, chunk), **worker)
    runs = [
        (count, seconds, min(_embedded(files[seconds], count) for _ in range(2))) for count, seconds in shapes
    ]
    return {"costs": costs, "taken": taken, "runs": runs}


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and of a core by the driver and by all processes."""

    clock: float
    driver: float
    all: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.clock - other.clock, self.driver - other.driver, self.all - other.all)

    def of_driver(self, polls: float) -> float:
        """The driver's, without what it takes of a core when nothing happens."""
        return max(0.0, self.driver - polls * self.clock)


def _now() -> Spent:
    total = time.process_time()
    for pid in started_by(os.getpid()):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Spent(time.monotonic(), time.process_time(), total)


def _beside(cores: int) -> tuple[float, float]:
    """Cores that all of Ray's processes take, and the driver alone, while the workers only sleep."""
    spent = _rows(8 * cores, 4, cores, 0.25)
    return spent.all / spent.clock, spent.driver / spent.clock


def _rows(rows: int, chunks: int, workers: int = 1, sleep: float = 0.0) -> Spent:
    """A pipeline of empty work, block by block as in `vmr embed`."""
    import ray
    from ray.data import ActorPoolStrategy

    class Chunks:
        def __call__(self, batch: dict[str, np.ndarray]) -> Any:
            for _ in range(chunks):
                time.sleep(sleep)
                yield batch

    data = ray.data.from_items(list(range(rows)), override_num_blocks=rows)
    data.context.target_max_block_size = 1
    pool = ActorPoolStrategy(size=workers)
    found = iter(data.map_batches(Chunks, batch_size=1, compute=pool, num_cpus=0.5).iter_rows())
    next(found)  # the workers are there
    began = _now()
    for _ in found:
        pass
    return _now() - began


def _embedded(path: str, count: int) -> float:
    """Seconds of `vmr embed` for a file under `count` names."""
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
        for i in range(count):
            (Path(folder) / "videos").mkdir(exist_ok=True)
            (Path(folder) / "videos" / f"{i:03d}.mp4").hardlink_to(path)
        began = time.perf_counter()
        summary = embed([f"{folder}/videos"], f"{folder}/features", EmbedConfig(encoder=ENCODER))
        assert summary.embedded == count
        return time.perf_counter() - began


def measure_archive(folder: Path, hours: float, queries: int) -> Figures:
    """Bytes of features and index an hour, indexing, listing and a query on one core: of made-up features.

    The weights are random: what a query costs does not depend on them.
    """
    import torch

    from vmr_ray.search.build import build_index
    from vmr_ray.search.searcher import Searcher

    torch.set_num_threads(1)
    _, dim = frame_spec(ENCODER)
    text = default_text_encoder(ENCODER)
    frames, count = 600, max(40, round(hours * 6))  # videos of ten minutes; stage 2 looks at 32 windows
    store = FeatureStore.create(str(folder / "features"), StoreSpec(ENCODER, dim, "fps=1"))
    draw = np.random.default_rng(0)
    for i in range(count):
        values = draw.standard_normal((frames, dim), np.float32).astype(np.float16)
        video = Video(f"{i:05d}.mp4", f"/{i:05d}.mp4", f"{i:016x}", 1)
        size = EmbedConfig().decode.chunk_frames
        for index, at in enumerate(range(0, frames, size)):
            part = values[at : at + size]
            edges = np.arange(at, at + len(part) + 1, dtype=float)
            last = at + size >= frames
            store.write_chunk(video, Chunk(index, last, 600.0, edges[:-1] + 0.5, edges, damage=""), part)
    info = CheckpointInfo(
        model=ModelConfig(),
        frame_encoder=ENCODER,
        frame_dim=dim,
        sampling="fps=1",
        text_encoder=text,
        token_dim=text_encoder(text).dim,
    )
    save_checkpoint(folder / "checkpoint", info.network().state_dict(), info)
    archive = count * frames / 3600
    began = time.perf_counter()
    chunks = sum(map(len, store.files().values()))
    listing = time.perf_counter() - began
    began = time.perf_counter()
    build_index(folder / "features", folder / "checkpoint", folder / "index")
    indexing = time.perf_counter() - began
    searcher = Searcher(folder / "index")
    asked = [f"the person opens door number {i}" for i in range(queries + 5)]
    for query in asked[:5]:
        searcher.search(query)
    began = time.perf_counter()
    for query in asked[5:]:
        searcher.search(query)
    return {
        "feature_bytes_per_hour": _size(folder / "features") / archive,
        "index_bytes_per_hour": _size(folder / "index") / archive,
        "files_per_hour": chunks / archive,
        "list_seconds_per_million_files": 1e6 * listing / chunks,
        "index_core_seconds_per_hour": indexing / archive,
        "query_core_seconds": (time.perf_counter() - began) / queries,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- What follows from it ---


def compare(found: dict[int, dict[str, Any]], chunk: float) -> Figures:
    """The simulation beside every measured run; prints the table."""
    table = Table(title="vmr embed: measured, and simulated from a worker's and the driver's costs")
    for column in ("cores", "videos", "seconds each", "measured s", "simulated s", "error"):
        table.add_column(column, justify="right")
    figures: Figures = {}
    for cores, each in found.items():
        # Here the workers share their cores with Ray's own processes; on a cluster the head has its own.
        machine = Cluster(1, cores, speed=1 - each["taken"] / cores)
        figures[f"cores{cores}_taken_by_ray"] = each["taken"]
        for count, seconds, measured in each["runs"]:
            simulated = simulate([seconds] * count, machine, each["costs"], chunk)
            error = simulated / measured - 1
            name = f"cores{cores}_videos{count}_seconds{seconds}"
            figures |= {
                f"{name}_measured_s": measured,
                f"{name}_simulated_s": simulated,
                f"{name}_error": error,
            }
            row = (cores, count, seconds, f"{measured:.1f}", f"{simulated:.1f}", f"{error:+.2f}")
            table.add_row(*map(str, row))
    out.print(table)
    errors = [abs(value) for key, value in figures.items() if key.endswith("_error")]
    return {"max_relative_error": max(errors), "mean_relative_error": float(np.mean(errors)), **figures}


@dataclass(frozen=True)
class Assumed:
    """What is not measured here."""

    cores: int
    boot_minutes: float
    loss_per_hour: float  # of nodes: the rate at which spot machines are taken
    node_price: float  # dollars an hour
    storage_price: float  # dollars a GB and month
    utilisation: float  # of the cores that answer queries
    part_minutes: float

    def cluster(self, nodes: int) -> Cluster:
        lifetime = 3600 / self.loss_per_hour if self.loss_per_hour else math.inf
        return Cluster(nodes, self.cores, boot=60 * self.boot_minutes, lifetime=lifetime)


def embedding_seconds(hours: float, nodes: int, costs: Costs, assumed: Assumed, most: int = PARTS) -> float:
    """Simulated; of more than `most` parts the rest goes on at the rate of the second half of those."""
    part, chunk = 60 * assumed.part_minutes, float(EmbedConfig().decode.chunk_frames)
    count = max(1, round(3600 * hours / part))
    cluster = assumed.cluster(nodes)
    if count <= most:
        return simulate([part] * count, cluster, costs, chunk)
    half, whole = (simulate([part] * n, cluster, costs, chunk) for n in (most // 2, most))
    return whole + (count - most) * (whole - half) / (most - most // 2)


def extrapolate(
    sizes: Sequence[float], counts: Sequence[int], costs: Costs, archive: Figures, assumed: Assumed, most: int
) -> Figures:
    """Hours and dollars of embedding by size and nodes; prints the tables."""
    figures: Figures = {}
    table = Table(title="embedding: hours of the clock (dollars), simulated with losses")
    table.add_column("hours of video", justify="right")
    for nodes in counts:
        table.add_column(f"{nodes} nodes", justify="right")
    for size in sizes:
        cells = []
        for nodes in counts:
            hours = embedding_seconds(size, nodes, costs, assumed, most) / 3600
            dollars = hours * nodes * assumed.node_price
            name = f"hours{size:.0e}_nodes{nodes}".replace("+", "")
            figures |= {f"{name}_embed_hours": hours, f"{name}_embed_dollars": dollars}
            cells.append(f"{hours:,.1f} (${dollars:,.0f})")
        table.add_row(f"{size:,.0f}", *cells)
    out.print(table)
    one = min(counts)
    speed = {n: figures[f"hours{max(sizes):.0e}_nodes{n}_embed_hours".replace("+", "")] for n in counts}
    table = Table(title=f"{max(sizes):,.0f} hours: speed-up over {one} node, and of that a node's share")
    for column in ("nodes", "speed-up", "share", "the driver's share of the time"):
        table.add_column(column, justify="right")
    part = 60 * assumed.part_minutes
    driver = costs.task + costs.chunk * math.ceil(part / EmbedConfig().decode.chunk_frames)
    for nodes in counts:
        gain = speed[one] / speed[nodes]
        busy = min(1.0, driver * 3600 * max(sizes) / part / (3600 * speed[nodes]))
        figures |= {f"nodes{nodes}_speedup": gain, f"nodes{nodes}_driver_busy": busy}
        table.add_row(str(nodes), f"{gain:.1f}", f"{gain * one / nodes:.2f}", f"{busy:.2f}")
    out.print(table)
    figures["driver_parts_per_second"] = 1 / driver
    figures["driver_full_at_cores"] = costs.part(part) / driver
    table = Table(title="what an archive of this size has")
    columns = (
        "hours of video",
        "features GB",
        "index GB",
        "$ a month",
        "chunk files",
        "listing h",
        "index core h",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for size in sizes:
        gigabytes = [size * archive[f"{kind}_bytes_per_hour"] / 1e9 for kind in ("feature", "index")]
        files = size * archive["files_per_hour"]
        listing = files / 1e6 * archive["list_seconds_per_million_files"] / 3600
        indexing = size * archive["index_core_seconds_per_hour"] / 3600
        monthly = sum(gigabytes) * assumed.storage_price
        name = f"hours{size:.0e}".replace("+", "")
        figures |= {
            f"{name}_feature_gb": gigabytes[0],
            f"{name}_index_gb": gigabytes[1],
            f"{name}_storage_dollars_per_month": monthly,
            f"{name}_files": files,
            f"{name}_listing_hours": listing,
            f"{name}_index_core_hours": indexing,
        }
        values = (*gigabytes, monthly, files, listing, indexing)
        table.add_row(f"{size:,.0f}", *(f"{value:,.1f}" for value in values))
    out.print(table)
    return figures


def plan(
    hours: float, queries: float, days: float, costs: Costs, archive: Figures, assumed: Assumed, most: int
) -> Figures:
    """The fewest nodes that embed `hours` in `days`, and those that answer `queries` a second."""
    low, high = 1, 1
    while embedding_seconds(hours, high, costs, assumed, most) > days * 86400 and high < 1024:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if embedding_seconds(hours, middle, costs, assumed, most) > days * 86400:
            low = middle + 1
        else:
            high = middle
    took = embedding_seconds(hours, high, costs, assumed, most) / 3600
    serving = math.ceil(queries * archive["query_core_seconds"] / assumed.utilisation / assumed.cores)
    gigabytes = hours * (archive["feature_bytes_per_hour"] + archive["index_bytes_per_hour"]) / 1e9
    figures = {
        "plan_hours_of_video": hours,
        "plan_embedding_nodes": float(high),
        "plan_embedding_hours": took,
        "plan_embedding_dollars": took * high * assumed.node_price,
        "plan_serving_nodes": float(serving),
        "plan_serving_dollars_per_month": serving * assumed.node_price * 730,
        "plan_storage_gb": gigabytes,
        "plan_storage_dollars_per_month": gigabytes * assumed.storage_price,
    }
    late = "" if took <= 24 * days else f" (more than {days:g} days: one driver does not keep up)"
    monthly = figures["plan_serving_dollars_per_month"] + figures["plan_storage_dollars_per_month"]
    out.print(
        f"{hours:,.0f} hours of video, {queries:g} queries a second: "
        f"{high} nodes for {took:,.1f} hours{late}, "
        f"${took * high * assumed.node_price:,.0f}; then {serving} nodes and {gigabytes:,.0f} GB, "
        f"${monthly:,.0f} a month",
        highlight=False,
        soft_wrap=True,
    )
    return figures


def main(
    hours: Annotated[float, typer.Option(help="of video, for the plan")] = 1e4,
    queries: Annotated[float, typer.Option(help="a second, for the plan")] = 10,
    days: Annotated[float, typer.Option(help="in which all is to be embedded, for the plan")] = 1,
    node_cores: Annotated[int, typer.Option(help="cores of a node")] = 16,
    node_price: Annotated[float, typer.Option(help="dollars an hour; put in yours")] = 0.30,
    storage_price: Annotated[float, typer.Option(help="dollars a GB and month; put in yours")] = 0.023,
    boot_minutes: Annotated[float, typer.Option(help="until a new node works")] = 4,
    loss_per_hour: Annotated[
        float, typer.Option(help="share of the spot nodes that is taken each hour")
    ] = 0.05,
    utilisation: Annotated[float, typer.Option(help="of the cores that answer queries")] = 0.5,
    part_minutes: Annotated[float, typer.Option(help="of video that one worker takes at a time")] = 10,
    quick: Annotated[bool, typer.Option("--quick", help="few and short runs")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="write all figures there, flat keys")] = None,
    work: Annotated[Path, typer.Option(help="where made files go, and stay")] = Path("bench-media"),
) -> None:
    """Measure, compare, extrapolate."""
    work.mkdir(parents=True, exist_ok=True)
    shapes = [(6, SHORT), (2, LONG)] if quick else [(40, SHORT), (10, LONG), (6, 120)]
    files = make_files(work, {SHORT, LONG, *(seconds for _, seconds in shapes)})
    there = len(os.sched_getaffinity(0))
    found: dict[int, dict[str, Any]] = {}
    for cores in sorted({1, there}):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[cores] = process.submit(session, cores, files, shapes).result()
    costs: Costs = found[there]["costs"]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        archive = process.submit(_archive, 1 if quick else 20, 20 if quick else 200).result()
    figures = {f"cost_{key}_s": value for key, value in asdict(costs).items()} | archive
    for key, value in figures.items():
        out.print(f"{key}: {value:.4g}", highlight=False)
    assumed = Assumed(
        node_cores, boot_minutes, loss_per_hour, node_price, storage_price, utilisation, part_minutes
    )
    out.print(f"assumed: {assumed}", highlight=False)
    most = PARTS // 20 if quick else PARTS
    compared = compare(found, float(EmbedConfig().decode.chunk_frames))
    figures = compared | figures | {f"assumed_{key}": value for key, value in asdict(assumed).items()}
    figures |= extrapolate((1e3, 1e6, 1e8), (1, 10, 100, 1000), costs, archive, assumed, most)
    figures |= plan(hours, queries, days, costs, archive, assumed, most)
    out.print(f"max_relative_error: {figures['max_relative_error']:.3f}", highlight=False)
    if json_:
        json_.write_text(json.dumps(figures, indent=1))


def make_files(work: Path, lengths: set[int]) -> dict[int, str]:
    """H.264 of 720p with a key frame every 2 seconds, one file for each length in seconds."""
    short = work / f"scaling-{SHORT}s.mp4"
    if not short.exists():
        render(short, (1280, 720), SHORT, 2)
    files = {SHORT: str(short)}
    for seconds in lengths - {SHORT}:
        path = work / f"scaling-{seconds}s.mp4"
        if not path.exists():
            repeat(short, path.with_suffix(".part.mp4"), seconds // SHORT).rename(path)
        files[seconds] = str(path)
    return files


def _archive(hours: float, queries: int) -> Figures:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    from vmr_ray.cluster import connect

    connect(address="local", num_cpus=1, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        return measure_archive(Path(folder), hours, queries)


if __name__ == "__main__":
    typer.run(main)
