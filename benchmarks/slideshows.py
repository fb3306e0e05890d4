"""Captioned photos -> H.264 videos with annotated moments, to train and measure with.

    python -m benchmarks.slideshows PHOTOS SLIDES/train --videos 1200 --last 6000
    python -m benchmarks.slideshows PHOTOS SLIDES/val --videos 150 --first 6000 --seed 1
    python -m benchmarks.accuracy --data SLIDES

PHOTOS is a folder of images with `captions.jsonl` or `captions.csv` (`file`, `caption`; several rows a
photo), or a Parquet file with a column of encoded images and a column of lists of captions. The command
writes OUT/videos/*.mp4 and OUT/moments.jsonl, whose lines are annotations as `vmr train` reads them:
`video`, `query`, `start`, `end`, `duration`, in seconds. A query that is true more than once has all its
moments in `spans`; `start` and `end` are then the first one's.

A video shows 4 to 8 photos; each caption is a query, and its moments are when its photo is on the screen. The
pictures and the sentences are real, the movement is the camera's. The kinds:

* `slides`: one shot a photo, hard cuts and cross-fades. A cut is always a border: the easy kind;
* `glide`: the camera travels along photos that melt into each other, without any cut;
* `recut`: hard cuts inside the moments, long cross-fades between them;
* `inset`: small pictures come and go over long backgrounds, so moments overlap;
* `again`: photos come back in another crop, so a query has several moments.

The same arguments give the same files. `--first` and `--last` take a slice of the photos in the order of
their names, so that training and validation videos show different photos.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.common.media import write_video
from benchmarks.common.output import print_line, run_command
from benchmarks.slides.kinds import KINDS, Frames, Script
from benchmarks.slides.screen import draw
from vmr_ray.errors import VmrError
from vmr_ray.photos.compose import SHOTS, deal
from vmr_ray.photos.files import Photo, read_photos
from vmr_ray.storage import write_bytes


@dataclass(frozen=True)
class Job:
    """One video to draw."""

    path: Path
    script: Script
    photos: dict[int, Photo]  # by their number in the script
    fps: int
    size: int


def main(
    photos: Annotated[Path, typer.Argument(help="folder of images, or Parquet file")],
    to: Annotated[Path, typer.Argument(metavar="OUT", help="folder for videos/ and moments.jsonl")],
    captions: Annotated[
        Path | None, typer.Option(help="of a folder: JSONL or CSV; default: captions.jsonl or .csv in it")
    ] = None,
    kind: Annotated[str, typer.Option(help=", ".join(KINDS))] = "slides",
    videos: Annotated[int, typer.Option(min=1)] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    first: Annotated[int, typer.Option(min=0, help="the first photo of the slice")] = 0,
    last: Annotated[int | None, typer.Option(help="the photo after the slice; default: all")] = None,
    queries: Annotated[int, typer.Option(min=1, help="captions of a photo that become queries")] = 5,
    fps: Annotated[int, typer.Option(min=4)] = 10,
    size: Annotated[int, typer.Option(min=32, help="width and height in pixels, even")] = 224,
    processes: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Make annotated videos out of captioned photos."""
    if kind not in KINDS:
        raise VmrError(f"--kind {kind}: choose from {', '.join(KINDS)}")
    if size % 2:
        raise VmrError(f"--size {size} must be even: H.264 stores colours for two pixels at a time")
    moments = to / "moments.jsonl"
    if moments.exists():
        raise VmrError(f"{moments} exists: name another folder, or delete that one")
    chosen = read_photos(photos, captions)[first:last]
    if len(chosen) < SHOTS[1]:
        raise VmrError(
            f"{len(chosen)} photos of {photos} are in the slice, and a video shows up to {SHOTS[1]}: give "
            "more photos, or another --first and --last"
        )
    (to / "videos").mkdir(parents=True, exist_ok=True)
    jobs, lines = [], []
    hands = deal(len(chosen), videos, np.random.default_rng(seed))
    for number, hand in enumerate(hands):
        random = np.random.default_rng([seed, number])
        name = f"videos/{kind}_{seed}_{number:05d}.mp4"
        script = KINDS[kind](hand, fps, random)
        jobs.append(Job(to / name, script, {photo: chosen[photo] for photo in hand}, fps, size))
        lines += annotate(name, script, [chosen[photo].captions for photo in hand], queries, fps, random)
    # The processes are spawned, because a forked one may inherit a lock of the encoder's threads.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(render, jobs), start=1):
            if done % 50 == 0 or done == len(jobs):
                print_line(f"{done} of {len(jobs)} videos")
    write_bytes(moments, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    print_line(f"{len(lines)} queries -> {moments}")


def annotate(
    video: str,
    script: Script,
    captions: Sequence[Sequence[str]],
    queries: int,
    fps: int,
    random: np.random.Generator,
) -> list[dict[str, Any]]:
    """The annotations of one video, one a query.

    Args:
        captions: of each of its photos.
        queries: captions that are taken of a photo, at most.
    """
    end = max(layer.last for layer in script.layers)
    by_query: dict[str, set[Frames]] = {}
    for sentences, moments in zip(captions, script.moments, strict=True):
        for number in sorted(random.permutation(len(sentences))[:queries]):
            # Two photos may have the same caption: then both show it.
            by_query.setdefault(sentences[number], set()).update(moments)
    lines: list[dict[str, Any]] = []
    for query, frames in by_query.items():
        spans = [[round(first / fps, 3), round(last / fps, 3)] for first, last in sorted(frames)]
        line = {"video": video, "query": query, "start": spans[0][0], "end": spans[0][1]}
        several = {"spans": spans} if len(spans) > 1 else {}
        lines.append({**line, "duration": round(end / fps, 3), **several})
    return lines


def render(job: Job) -> None:
    """Draw and encode one video; with one thread of x264, every machine writes the same."""
    images = {number: _opened(photo, 2 * job.size) for number, photo in job.photos.items()}
    options = {"crf": "26", "preset": "veryfast", "g": str(4 * job.fps)}
    write_video(job.path, draw(job.script.layers, images, job.size), job.fps, options, threads=1)


def _opened(photo: Photo, short_side: int) -> Image.Image:
    """A photo whose short side is no longer than that: the camera takes single pixels of a larger one."""
    image = photo.open()
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    run_command(main)
