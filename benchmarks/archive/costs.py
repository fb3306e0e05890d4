"""What `vmr embed` costs: of a worker, of the driver and of Ray itself, and whole runs to compare with."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.archive.simulation import Costs
from benchmarks.common.processes import core_seconds, descendants
from vmr_ray.config import EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.encoders import FrameEncoder, frame_encoder, frame_spec
from vmr_ray.features import FeatureStore
from vmr_ray.schema import StoreSpec, Video
from vmr_ray.video.decode.decoder import FrameDecoder
from vmr_ray.video.sources import find_videos

ENCODER = "efficientnet-lite0"
SHORT, LONG = 10, 60  # seconds of the two files that a worker is measured with


@dataclass(frozen=True)
class Run:
    """`vmr embed` of `videos` files of so many seconds; `measured` are seconds of the clock."""

    videos: int
    seconds: int
    measured: float


@dataclass(frozen=True)
class Session:
    """What was measured on so many cores; `taken` are cores that Ray's own processes use."""

    cores: int
    costs: Costs
    taken: float
    runs: tuple[Run, ...]


def measure_session(cores: int, files: dict[int, str], shapes: Sequence[tuple[int, int]]) -> Session:
    """Costs and whole runs on the first `cores` of this process's.

    Call it in a process of its own, because Ray's processes inherit its cores.

    Args:
        files: a video for each length in seconds.
        shapes: how many videos of how many seconds the runs embed.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    worker = measure_worker({seconds: files[seconds] for seconds in (SHORT, LONG)}, cores)
    from vmr_ray.cluster import connect

    connect(address="local", num_cpus=cores, include_dashboard=False)
    _pipeline(8, 1)  # the first one is slower
    taken, polls = _idle_use(cores)
    few, many, wide = _pipeline(20, 1), _pipeline(220, 1), _pipeline(20, 21)
    task = (many - few).of_driver(polls) / 200
    chunk = (wide - few).of_driver(polls) / (20 * 20)
    _embed_copies(files[SHORT], 1)
    one = worker["video"] + SHORT * (worker["decode"] + worker["encode"] + worker["write"])
    startup = max(0.0, _embed_copies(files[SHORT], cores) - one / (1 - taken / cores))
    runs = [
        Run(count, seconds, min(_embed_copies(files[seconds], count) for _ in range(2)))
        for count, seconds in shapes
    ]
    return Session(cores, Costs(startup=startup, task=task, chunk=chunk, **worker), taken, tuple(runs))


def measure_worker(files: dict[int, str], cores: int) -> dict[str, float]:
    """A worker's seconds, while as many as there are cores do the same."""
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        workers = list(pool.map(_work, [files] * cores))
    return {key: float(np.mean([worker[key] for worker in workers])) for key in workers[0]}


def _work(files: dict[int, str]) -> dict[str, float]:
    """Decoding, encoding and writing a file, in this process, as a worker of `vmr embed` does."""
    spent = {}
    size, dim = frame_spec(ENCODER)
    config = EmbedConfig(encoder=ENCODER)
    encoder = frame_encoder(ENCODER, threads=1)
    with tempfile.TemporaryDirectory() as folder, FrameDecoder(config.decode, size, size) as decoder:
        store = FeatureStore.create(folder, StoreSpec(ENCODER, dim, config.decode.sampling))
        for seconds, path in files.items():
            (video,) = find_videos([path])
            # The first time is slower: the decoder starts, caches fill.
            times = [_timed(video, decoder, encoder, store, config.batch_frames) for _ in range(4)]
            spent[seconds] = np.median(times[1:], axis=0)
    slope = (spent[LONG] - spent[SHORT]) / (LONG - SHORT)
    fixed = max(0.0, float((spent[SHORT] - slope * SHORT).sum()))
    return {"video": fixed, "decode": slope[0], "encode": slope[1], "write": slope[2]}


def _timed(
    video: Video, decoder: FrameDecoder, encoder: FrameEncoder, store: FeatureStore, batch: int
) -> tuple[float, float, float]:
    """Seconds of decoding, encoding and writing one video."""
    decode = encode = write = 0.0
    began = time.perf_counter()
    for chunk in decoder.decode(video.uri):
        decoded = time.perf_counter()
        parts = [encoder(chunk.frames[i : i + batch]) for i in range(0, len(chunk.frames), batch)]
        features = np.concatenate(parts).astype(np.float16)
        encoded = time.perf_counter()
        store.write_chunk(video, chunk, features)
        decode, encode = decode + decoded - began, encode + encoded - decoded
        began = time.perf_counter()
        write += began - encoded
    return decode, encode, write


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and of a core by the driver and by all processes."""

    clock: float
    driver: float
    all: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.clock - other.clock, self.driver - other.driver, self.all - other.all)

    def of_driver(self, polls: float) -> float:
        """The driver's, without the share of a core that it uses when nothing happens."""
        return max(0.0, self.driver - polls * self.clock)


def _now() -> Spent:
    driver = time.process_time()
    return Spent(time.monotonic(), driver, driver + sum(map(core_seconds, descendants(os.getpid()))))


def _idle_use(cores: int) -> tuple[float, float]:
    """Cores that all of Ray's processes use, and the driver alone, while the workers only sleep."""
    spent = _pipeline(8 * cores, 4, cores, 0.25)
    return spent.all / spent.clock, spent.driver / spent.clock


def _pipeline(rows: int, chunks: int, workers: int = 1, sleep: float = 0.0) -> Spent:
    """What a pipeline of empty work needs, block by block as in `vmr embed`."""
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
    results = iter(data.map_batches(Chunks, batch_size=1, compute=pool, num_cpus=0.5).iter_rows())
    next(results)  # the workers have started
    began = _now()
    for _ in results:
        pass
    return _now() - began


def _embed_copies(path: str, count: int) -> float:
    """Seconds of `vmr embed` for a file under `count` names."""
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
        (Path(folder) / "videos").mkdir()
        for i in range(count):
            (Path(folder) / "videos" / f"{i:03d}.mp4").hardlink_to(path)
        began = time.perf_counter()
        summary = embed([f"{folder}/videos"], f"{folder}/features", EmbedConfig(encoder=ENCODER))
        if summary.embedded < count:
            raise RuntimeError(f"only {summary.embedded} of {count} copies of {path} were embedded")
        return time.perf_counter() - began
