"""How fast videos become features: `vmr embed`, `ray.data.read_videos`, and what the cores allow.

    python -m benchmarks.ingest --json ingest.json          # makes its own files
    python -m benchmarks.ingest FOLDER                      # measures with yours

The baseline (a) is what Ray users write first. Two ceilings follow from what one process decodes (b) and
encodes (c) alone:

* whole cores, each either for decoding or for encoding, split in the best way: two cores give `min(b, c)`,
  and a single one `1 / (1/b + 1/c)`;
* shared cores, all of them for both and never idle: `cores / (1/b + 1/c)`, with b and c of processes that run
  at the same time, because cores that share caches and memory slow each other down.

All runs start with a running Ray; their times include the start of the workers.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.common.media import FPS, render, repeat
from benchmarks.common.output import (
    Figures,
    JsonOption,
    print_figures,
    print_line,
    print_table,
    run_command,
    write_figures,
)
from benchmarks.common.processes import PeakMemory
from vmr_ray.cluster import quiet
from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.encoders import frame_encoder
from vmr_ray.video.decode.frame_index import read_index
from vmr_ray.video.decode.reader import read_frames
from vmr_ray.video.decode.sampling import Sampling

ENCODER = "efficientnet-lite0"
SETS = {"1080p_gop2s": ((1920, 1080), 2), "720p_gop10s": ((1280, 720), 10)}
SAMPLINGS = ("fps=1", "keyframes", f"every={FPS}")
ALONE_SECONDS = 8.0  # that decoding or encoding alone is measured
HEADLINES = (
    "speedup_vs_read_videos",
    "speedup_vs_read_videos_resize",
    "share_of_ceiling",
    "share_of_shared_ceiling",
    "keyframes_vs_fps",
)


@dataclass
class Run:
    name: str
    frames: int
    video_seconds: float
    seconds: float
    worker_mb: float = 0.0
    total_mb: float = 0.0

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds

    @property
    def speed(self) -> float:
        """Seconds of video a second."""
        return self.video_seconds / self.seconds


def main(
    folder: Annotated[Path | None, typer.Argument(help="videos of your own; default: made here")] = None,
    cores: Annotated[int, typer.Option(help="CPUs that Ray may use")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="length of a made file")] = 60,
    copies: Annotated[int, typer.Option(help="how many such files are embedded")] = 30,
    long_minutes: Annotated[int, typer.Option(help="length of the long 1080p file; 0 leaves it out")] = 120,
    work: Annotated[Path, typer.Option(help="where made files go, and stay")] = Path("bench-media"),
    json_: JsonOption = None,
) -> None:
    """Measure and print."""
    quiet()
    from vmr_ray.cluster import connect
    from vmr_ray.video.sources import find_videos

    connect(address="local", num_cpus=cores, include_dashboard=False)
    if folder:
        videos = [Path(video.uri) for video in find_videos([folder])]
        figures = flat({"folder": measure("folder", videos, videos, cores)})
    else:
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as links:
            figures = measure_made(work, Path(links), cores, seconds, copies)
            if long_minutes:
                figures |= measure_long(Path(links), long_minutes)
    print_figures({key: figures[key] for key in HEADLINES})
    write_figures(json_, {"cores": cores, **figures})


def measure_made(work: Path, links: Path, cores: int, seconds: float, copies: int) -> Figures:
    """Every set of made files: one file under several names."""
    by_set: dict[str, Figures] = {}
    for name, (size, gop) in SETS.items():
        path = work / f"{name}-{seconds:g}s.mp4"
        if not path.exists():
            render(path, size, seconds, gop)
        videos = [links / f"{name}-{i:02d}.mp4" for i in range(copies)]
        for link in videos:
            link.hardlink_to(path)
        by_set[name] = measure(name, videos, videos[: max(1, copies // 6)], cores)
    figures = flat(by_set)
    slow, fast = (
        sum(1 / found[f"ours_{sampling}_video_seconds_per_second"] for found in by_set.values())
        for sampling in ("fps", "keyframes")
    )
    return {**figures, "keyframes_vs_fps": slow / fast}  # of all sets together


def flat(by_set: Mapping[str, Figures]) -> Figures:
    """All figures with the name of their set, after the headlines, which are the first set's."""
    first = next(iter(by_set.values()))
    figures = {f"{name}_{key}": value for name, found in by_set.items() for key, value in found.items()}
    return {key: first[key] for key in HEADLINES} | figures


def measure_long(folder: Path, minutes: int) -> Figures:
    """A worker's peak memory for a long 1080p file, and for one of a tenth of its length."""
    figures: Figures = {}
    small = render(folder / "still.mp4", (1920, 1080), 20, 2)
    for length in (max(1, minutes // 10), minutes):
        path = repeat(small, folder / f"long-{length}.mp4", length * 3)
        figures[f"long_{length}min_worker_mb"] = memory = ours([path], "fps=1").worker_mb
        print_line(f"1080p of {length} minutes: a worker's peak memory {memory:.0f} MB")
    return figures


def measure(name: str, videos: Sequence[Path], few: Sequence[Path], cores: int) -> Figures:
    """All rows of one set of files; prints its tables and returns its figures.

    Args:
        few: that the baseline reads; it needs much longer for a video.
    """
    alone, together = ({s: decode_only(videos, s, n) for s in SAMPLINGS} for n in (1, cores))
    encode_alone, encode_together = encode_only(1), encode_only(cores)
    length = sum(_seconds(path) for path in few)
    plain, resized = (baseline(few, length, resize) for resize in (False, True))
    embedded = {sampling: ours(videos, sampling) for sampling in SAMPLINGS}
    rates = {sampling: run.frames_per_second for sampling, run in embedded.items()}
    whole = {s: rates[s] / _whole_cores(alone[s], encode_alone, cores) for s in SAMPLINGS}
    shared = {s: rates[s] / _shared_cores(together[s], encode_together, cores) for s in SAMPLINGS}

    decoding = [run for pair in zip(alone.values(), together.values(), strict=True) for run in pair]
    rows = []
    for run in (plain, resized, *decoding, encode_alone, encode_together, *embedded.values()):
        cells = [f"{run.speed:.1f}", f"{run.speed / plain.speed:.2f}"] if run.speed else []
        rows.append([run.name, f"{run.frames_per_second:.1f}", *cells])
    title = f"{name}: {len(videos)} files, {cores} cores"
    print_table(title, ("", "frames/s", "video s/s", "of (a1)"), rows)
    shares = {embedded[s].name: (f"{whole[s]:.2f}", f"{shared[s]:.2f}") for s in SAMPLINGS}
    print_table(
        f"{name}: shares of the two ceilings, and peak memory",
        ("", "whole cores", "shared cores", "worker MB", "all MB"),
        [
            (run.name, *shares.get(run.name, ("", "")), f"{run.worker_mb:.0f}", f"{run.total_mb:.0f}")
            for run in (plain, resized, *embedded.values())
        ],
    )
    figures: Figures = {
        "read_videos_video_seconds_per_second": plain.speed,
        "read_videos_resize_video_seconds_per_second": resized.speed,
        "read_videos_worker_mb": plain.worker_mb,
        "encode_one_frames_per_second": encode_alone.frames_per_second,
        "encode_each_frames_per_second": encode_together.frames_per_second,
        "speedup_vs_read_videos": embedded["fps=1"].speed / plain.speed,
        "speedup_vs_read_videos_resize": embedded["fps=1"].speed / resized.speed,
        "share_of_ceiling": whole["fps=1"],
        "share_of_shared_ceiling": shared["fps=1"],
        "keyframes_vs_fps": embedded["keyframes"].speed / embedded["fps=1"].speed,
    }
    for sampling in SAMPLINGS:
        key = sampling.partition("=")[0]
        figures |= {
            f"decode_{key}_one_frames_per_second": alone[sampling].frames_per_second,
            f"decode_{key}_each_frames_per_second": together[sampling].frames_per_second,
            f"ours_{key}_frames_per_second": rates[sampling],
            f"ours_{key}_video_seconds_per_second": embedded[sampling].speed,
            f"ours_{key}_share_of_ceiling": whole[sampling],
            f"ours_{key}_share_of_shared_ceiling": shared[sampling],
            f"ours_{key}_worker_mb": embedded[sampling].worker_mb,
            f"ours_{key}_total_mb": embedded[sampling].total_mb,
        }
    return figures


def _whole_cores(decode: Run, encode: Run, cores: int) -> float:
    b, c = decode.frames_per_second, encode.frames_per_second
    return max((min(n * b, (cores - n) * c) for n in range(1, cores)), default=1 / (1 / b + 1 / c))


def _shared_cores(decode: Run, encode: Run, cores: int) -> float:
    return cores / (1 / decode.frames_per_second + 1 / encode.frames_per_second)


def _seconds(path: Path) -> float:
    index = read_index(str(path))
    return float(index.ends[-1] - index.starts[0])


# --- The runs ---


def baseline(videos: Sequence[Path], video_seconds: float, resize: bool) -> Run:
    """(a1) What Ray users write first; (a2), with `resize`, what they write after reading on."""
    import ray
    from PIL import Image
    from ray.data import ActorPoolStrategy

    class Encode:
        def __init__(self) -> None:
            self.encoder = frame_encoder(ENCODER)

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            size = self.encoder.size
            frames = batch["frame"]
            if frames.shape[1:3] != (size, size):
                frames = np.stack([np.asarray(Image.fromarray(f).resize((size, size))) for f in frames])
            return {"features": self.encoder(frames)}

    options: dict[str, Any] = {"resize": (224, 224)} if resize else {}
    began = time.monotonic()
    with PeakMemory() as memory:
        rows = (
            ray.data.read_videos([str(path) for path in videos], fps=1, **options)
            .map_batches(Encode, batch_size=32, compute=ActorPoolStrategy(size=1))
            .iter_batches(batch_size=None)
        )
        frames = sum(len(batch["features"]) for batch in rows)
    seconds = time.monotonic() - began
    name = f"a{1 + resize} read_videos(fps=1{', resize' * resize})"
    return Run(name, frames, video_seconds, seconds, memory.worker, memory.total)


def decode_only(videos: Sequence[Path], sampling: str, processes: int) -> Run:
    """(b) Decode, nothing else: the rate of one process while `processes` do the same."""
    return _each(processes, f"b  decode {sampling}", _decode, [str(path) for path in videos], sampling)


def encode_only(processes: int) -> Run:
    """(c) Encode, nothing else: the rate of one process while `processes` do the same."""
    return _each(processes, "c  encode", _encode)


def _each(processes: int, name: str, work: Callable[..., tuple[int, float, float]], *arguments: Any) -> Run:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(work, *arguments) for _ in range(processes)]
        frames, video_seconds, seconds = (
            sum(column) for column in zip(*(future.result() for future in futures), strict=True)
        )
    label = "one process" if processes == 1 else f"each of {processes} processes"
    return Run(f"{name}, {label}", int(frames), video_seconds, seconds)


def _decode(paths: list[str], sampling: str) -> tuple[int, float, float]:
    config, rate = DecodeConfig(), Sampling.parse(sampling)
    frames, video_seconds, began = 0, 0.0, time.monotonic()
    for path in itertools.cycle(paths):
        index = read_index(path)
        plan = rate.plan(index.starts, index.ends, index.keys)
        chunks = (0, len(plan.indices))
        for _, batch, _ in read_frames(index, rate, plan, 224, 224, config.chunk_frames, 1, chunks):
            frames += len(batch)
        video_seconds += float(plan.edges[-1] - plan.edges[0])
        if time.monotonic() - began > ALONE_SECONDS:
            return frames, video_seconds, time.monotonic() - began
    raise AssertionError("no videos")


def _encode() -> tuple[int, float, float]:
    encoder = frame_encoder(ENCODER, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (64, encoder.size, encoder.size, 3), np.uint8)
    encoder(pixels)
    began = time.monotonic()
    for batch in itertools.count(1):
        encoder(pixels)
        if time.monotonic() - began > ALONE_SECONDS:
            return 64 * batch, 0.0, time.monotonic() - began
    raise AssertionError("unreachable")


def ours(videos: Sequence[Path], sampling: str) -> Run:
    """(d) vmr embed."""
    config = EmbedConfig(encoder=ENCODER, decode=DecodeConfig(sampling=sampling))
    with tempfile.TemporaryDirectory() as store, PeakMemory() as memory:
        summary = embed(videos, store, config)
    if summary.embedded < len(videos):
        print_line(f"{len(videos) - summary.embedded} of {len(videos)} videos were not embedded")
    return Run(
        f"d  vmr embed {sampling}",
        summary.frames,
        summary.hours * 3600,
        summary.seconds,
        memory.worker,
        memory.total,
    )


if __name__ == "__main__":
    run_command(main)
