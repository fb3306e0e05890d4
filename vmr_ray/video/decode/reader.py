"""Read chosen frames of an indexed video. Runs inside the decoder's child process.

PyAV indexes every file first, because decord does not report a frame's true timestamp. Then decord reads
files without B-frames, where it is faster. PyAV reads

* files with B-frames: it skips those that were not asked for and that no other frame depends on;
* anything but MP4/MOV and Matroska/WebM, where a seek need not land on a key frame;
* open GOPs and edit lists, whose frames decord numbers wrongly;
* dense samplings, key frames and very large files, where decord is slower or reads too far ahead;
* HDR pictures, which are converted, and mirrored ones;
* damaged files: decord repeats or renumbers frames, and only a line on stderr shows it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmr_ray.schema import Scaling
from vmr_ray.video.decode.decord_reader import DecordReader, decord_fits
from vmr_ray.video.decode.frame_index import FrameIndex
from vmr_ray.video.decode.picture import KeptPictures
from vmr_ray.video.decode.pyav_reader import read_with_pyav
from vmr_ray.video.decode.sampling import SamplePlan, Sampling


def chunk_range(index: FrameIndex, plan: SamplePlan, chunk: int, part: int, parts: int) -> tuple[int, int]:
    """The chunks `[first, stop)` of `plan` that are the `part`-th of `parts` equal ones.

    Only an undamaged file that can be entered at any key frame is divided; otherwise part 0 has all chunks.
    """
    chunks = -(-len(plan.indices) // chunk)
    if not index.seekable or index.damage:
        return (0, chunks) if part == 0 else (chunks, chunks)
    return part * chunks // parts, (part + 1) * chunks // parts


def read_frames(
    index: FrameIndex,
    sampling: Sampling,
    plan: SamplePlan,
    width: int,
    height: int,
    chunk: int,
    threads: int,
    chunks: tuple[int, int],
    scaling: Scaling = Scaling(),
    pictures: KeptPictures | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], str]]:
    """Decode the frames of the chunks `[first, stop)` of `plan`; a chunk has `chunk` frames. `pictures` gets
    them too.

    Yields:
        for each chunk: int64 [n], the positions in `plan` of the frames that can be read; the frames,
        uint8 [n, height, width, 3] RGB, upright; and the damage that was seen in the chunk, in words.
    """
    positions = np.arange(chunks[0] * chunk, min(chunks[1] * chunk, len(plan.indices)))
    # An edit list may hide every key frame; the plan is then the first frame.
    only_keys = sampling.kind == "keyframes" and len(index.keys) > 0
    if not len(positions):
        return
    if only_keys or pictures or not decord_fits(index, plan, chunk):
        yield from read_with_pyav(
            index, plan, positions, width, height, chunk, threads, only_keys, scaling, pictures
        )
        return
    decord = DecordReader(index, width, height, threads, scaling)
    for at in range(0, len(positions), chunk):
        part = positions[at : at + chunk]
        if (frames := decord.read(plan.indices[part])) is not None:
            yield part, frames, ""
        else:
            yield from read_with_pyav(index, plan, part, width, height, chunk, threads, only_keys, scaling)
