"""How fast videos become features: ours beside `ray.data.read_videos`, and beside what the cores allow.

    python benchmarks/ingest.py --json ingest.json          # makes its own files
    python benchmarks/ingest.py FOLDER                      # measures with yours

Two ceilings, from what one process decodes (b) and encodes (c) alone:

* whole cores, each either for decoding or for encoding, as many as is best: two give `min(b, c)`, and one
  alone `1 / (1/b + 1/c)`;
* `cores / (1/b + 1/c)`, all cores for both, never idle, with b and c of processes that run beside each
  other, since cores that share caches and memory slow each other down.

All runs start with a running Ray; the times are whole, with the start of their workers.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from media import FPS, render, repeat
from processes import PeakMemory
from rich.console import Console
from rich.table import Table

from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.encoders import frame_encoder
from vmr_ray.video.decode.frame_index import read_index
from vmr_ray.video.decode.reader import read_frames
from vmr_ray.video.decode.sampling import Sampling

ENCODER = "efficientnet-lite0"
SETS = {"1080p_gop2s": ((1920, 1080), 2), "720p_gop10s": ((1280, 720), 10)}
MODES = ("fps=1", "keyframes", f"every={FPS}")
ALONE_SECONDS = 8.0
HEADLINES = (
    "speedup_vs_read_videos",
    "speedup_vs_read_videos_resize",
    "share_of_ceiling",
    "share_of_shared_ceiling",
    "keyframes_vs_fps",
)
Figures = dict[str, float]
out = Console(width=132)


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


def baseline(videos: Sequence[Path], video_seconds: float, resize: bool) -> Run:
    """(a) What a Ray user writes first; with `resize`, one who has read on."""
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
    with PeakMemory(os.getpid()) as memory:
        rows = (
            ray.data.read_videos([str(path) for path in videos], fps=1, **options)
            .map_batches(Encode, batch_size=32, compute=ActorPoolStrategy(size=1))
            .iter_batches(batch_size=None)
        )
        frames = sum(len(batch["features"]) for batch in rows)
    seconds = time.monotonic() - began
    name = f"a{1 + resize} read_videos(fps=1{', resize' * resize}) + map_batches"
    return Run(name, frames, video_seconds, seconds, memory.worker, memory.total)


def decode_only(videos: Sequence[Path], sampling: str, processes: int) -> Run:
    """(b) Decode, nothing else: the rate of one process while `processes` do the same."""
    return _each(processes, f"b  decode only, {sampling}", _decode, [str(path) for path in videos], sampling)


def encode_only(processes: int) -> Run:
    """(c) Encode, nothing else: the rate of one process while `processes` do the same."""
    return _each(processes, "c  encode only", _encode)


def _each(processes: int, name: str, work: Callable[..., tuple[int, float, float]], *given: Any) -> Run:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        done = [pool.submit(work, *given) for _ in range(processes)]
        frames, video_seconds, seconds = (
            sum(column) for column in zip(*(d.result() for d in done), strict=True)
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
    with tempfile.TemporaryDirectory() as store, PeakMemory(os.getpid()) as memory:
        summary = embed(videos, store, config)
    if summary.embedded < len(videos):
        out.print(f"[yellow]{len(videos) - summary.embedded} of {len(videos)} videos did not embed")
    return Run(
        f"d  vmr embed, {sampling}",
        summary.frames,
        summary.hours * 3600,
        summary.seconds,
        memory.worker,
        memory.total,
    )


def measure(
    name: str, videos: Sequence[Path], few: Sequence[Path], many: Sequence[Path], cores: int
) -> Figures:
    """All rows of one set of files; prints its table and returns its figures."""
    alone = {sampling: decode_only(videos, sampling, 1) for sampling in MODES}
    together = {sampling: decode_only(videos, sampling, cores) for sampling in MODES}
    encode_alone, encode_together = encode_only(1), encode_only(cores)
    of_few = sum(_seconds(path) for path in few)
    a, resized = (baseline(few, of_few, resize) for resize in (False, True))
    d = {sampling: ours(many, sampling) for sampling in MODES}
    whole = {s: d[s].frames_per_second / _whole_cores(alone[s], encode_alone, cores) for s in MODES}
    shared = {s: d[s].frames_per_second / _shared_cores(together[s], encode_together, cores) for s in MODES}
    table = Table(title=f"{name}: {len(many)} files, {cores} cores")
    for column in ("", "frames/s", "video s/s", "of (a1)", "of whole", "of shared", "worker MB", "all MB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    decoding = [run for pair in zip(alone.values(), together.values(), strict=True) for run in pair]
    for run in (a, resized, *decoding, encode_alone, encode_together, *d.values()):
        table.add_row(
            run.name,
            f"{run.frames_per_second:.1f}",
            f"{run.speed:.1f}" if run.speed else "",
            f"{run.speed / a.speed:.2f}" if run.speed else "",
            *(next((f"{share[s]:.2f}" for s in MODES if d[s] is run), "") for share in (whole, shared)),
            f"{run.worker_mb:.0f}" if run.worker_mb else "",
            f"{run.total_mb:.0f}" if run.total_mb else "",
        )
    out.print(table)
    figures: Figures = {
        "read_videos_video_seconds_per_second": a.speed,
        "read_videos_resize_video_seconds_per_second": resized.speed,
        "read_videos_worker_mb": a.worker_mb,
        "encode_one_frames_per_second": encode_alone.frames_per_second,
        "encode_each_frames_per_second": encode_together.frames_per_second,
        "speedup_vs_read_videos": d["fps=1"].speed / a.speed,
        "speedup_vs_read_videos_resize": d["fps=1"].speed / resized.speed,
        "share_of_ceiling": whole["fps=1"],
        "share_of_shared_ceiling": shared["fps=1"],
        "keyframes_vs_fps": d["keyframes"].speed / d["fps=1"].speed,
    }
    for sampling in MODES:
        key = sampling.partition("=")[0]
        figures |= {
            f"decode_{key}_one_frames_per_second": alone[sampling].frames_per_second,
            f"decode_{key}_each_frames_per_second": together[sampling].frames_per_second,
            f"ours_{key}_frames_per_second": d[sampling].frames_per_second,
            f"ours_{key}_video_seconds_per_second": d[sampling].speed,
            f"ours_{key}_share_of_ceiling": whole[sampling],
            f"ours_{key}_share_of_shared_ceiling": shared[sampling],
            f"ours_{key}_worker_mb": d[sampling].worker_mb,
            f"ours_{key}_total_mb": d[sampling].total_mb,
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


def main(
    folder: Annotated[Path | None, typer.Argument(help="videos of your own; default: made here")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write all figures there")] = None,
    cores: Annotated[int, typer.Option(help="CPUs that Ray may use")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="length of a made file")] = 60,
    copies: Annotated[int, typer.Option(help="how many such files are embedded")] = 30,
    long_minutes: Annotated[int, typer.Option(help="length of the long 1080p file; 0 leaves it out")] = 120,
    work: Annotated[Path, typer.Option(help="where made files go, and stay")] = Path("bench-media"),
) -> None:
    """Measure and print."""
    from vmr_ray.cluster import connect
    from vmr_ray.video.sources import find_videos

    connect(address="local", num_cpus=cores, include_dashboard=False)
    figures: Figures = {"cores": cores}
    sets: dict[str, list[Path]] = {}
    if folder:
        sets["folder"] = [Path(video.uri) for video in find_videos([folder])]
    else:
        work.mkdir(parents=True, exist_ok=True)
        for name, (size, gop) in SETS.items():
            path = work / f"{name}-{seconds:g}s.mp4"
            sets[name] = [path if path.exists() else render(path, size, seconds, gop)]
    with tempfile.TemporaryDirectory(dir=None if folder else work) as links:
        for name, videos in sets.items():
            few = many = videos
            if not folder:  # the made file under several names
                many = [Path(links) / f"{name}-{i:02d}.mp4" for i in range(copies)]
                for link in many:
                    link.hardlink_to(videos[0])
                few = many[: max(1, copies // 6)]
            found = measure(name, videos, few, many, cores)
            figures |= {f"{name}_{key}": value for key, value in found.items()}
            figures = {key: found[key] for key in HEADLINES if key not in figures} | figures
        if not folder:
            slow = [figures[f"{name}_ours_fps_video_seconds_per_second"] for name in sets]
            fast = [figures[f"{name}_ours_keyframes_video_seconds_per_second"] for name in sets]
            figures["keyframes_vs_fps"] = sum(1 / s for s in slow) / sum(1 / f for f in fast)
        if long_minutes and not folder:
            small = render(Path(links) / "still.mp4", (1920, 1080), 20, 2)
            for minutes in (max(1, long_minutes // 10), long_minutes):
                path = repeat(small, Path(links) / f"long-{minutes}.mp4", minutes * 3)
                run = ours([path], "fps=1")
                figures[f"long_{minutes}min_worker_mb"] = run.worker_mb
                out.print(f"1080p of {minutes} minutes: a worker's peak memory {run.worker_mb:.0f} MB")
    for key in HEADLINES:
        out.print(f"{key}: {figures[key]:.2f}", highlight=False)
    if json_:
        json_.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    typer.run(main)
