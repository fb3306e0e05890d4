"""How long it takes from installing the package to the first right answer about a folder of videos.

    python -m benchmarks.first_answer --json first_answer.json
    python -m benchmarks.first_answer --data SET        # a folder of videos with moments.jsonl

The package is installed into a new environment, `vmr up` makes the videos searchable, and `vmr search` is
asked one sentence after the other until its best moment is right (the right video, IoU of at least 0.5).
Without --data the videos are those of `vmr demo`. Building the wheel and making the videos do not count;
downloads count unless pip has them. The versions are those of the constraints file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common.output import Figures, JsonOption, print_line, print_table, run_command, write_figures
from vmr_ray.annotations import load_annotations
from vmr_ray.demo.answers import Place, compare
from vmr_ray.demo.photos import render_photos
from vmr_ray.errors import VmrError

ROOT = Path(__file__).parents[1]
STEPS = {
    "install": "pip install --no-compile",
    "up": "vmr up: embed and index",
    "search": "vmr search, until it is right",
}


def main(
    data: Annotated[Path | None, typer.Option(help="folder of videos with moments.jsonl")] = None,
    videos: Annotated[int, typer.Option(min=1, help="of --data, in the order of their names")] = 10,
    json_: JsonOption = None,
) -> None:
    """Install, make searchable, ask; print what each step took."""
    figures = first_answer(data, videos)
    rows = [[name, f"{figures[f'{step}_s']:.1f}"] for step, name in STEPS.items()]
    print_table(
        "from nothing to the first right answer",
        ("step", "s"),
        [*rows, ["all", f"{figures['seconds_to_first_answer']:.1f}"]],
    )
    print_line(f"\n{figures['asked']:.0f} sentences asked, {os.cpu_count()} cores")
    write_figures(json_, figures)


def first_answer(data: Path | None = None, videos: int = 10) -> Figures:
    """The seconds of every step, and of all, for the first `videos` of a set or for the videos of `vmr demo`.

    Raises:
        VmrError: a step fails, or no sentence is answered right.
    """
    with tempfile.TemporaryDirectory(prefix="vmr-first-") as temporary:
        work = Path(temporary)
        folder, asked = _from_set(data, videos, work) if data else _photos(work)
        return _measure(_built(work), folder, asked, work)


def _measure(wheel: Path, folder: Path, asked: list[tuple[str, Place]], work: Path) -> Figures:
    began = time.monotonic()
    _run(work, sys.executable, "-m", "venv", work / "venv")
    bin_ = work / "venv" / "bin"
    # Python compiles a module when it is first imported; pip would compile all of them, most for nothing.
    _run(work, bin_ / "pip", "install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", wheel)
    installed = time.monotonic()
    _run(work, bin_ / "vmr", "up", folder, "--dir", work / "state", "--exit")
    searchable = time.monotonic()
    (index,) = (work / "state").glob("index-*")
    count = 0
    for sentence, truth in asked:
        count += 1
        said = _run(work, bin_ / "vmr", "search", sentence, "--index", index, "--top", "1", "--json")
        found = [Place(m["video_id"], m["start"], m["end"]) for m in json.loads(said)["moments"]]
        if found and compare(sentence, truth, found).rank == 1:
            break
    else:
        raise VmrError(f"none of {len(asked)} sentences was answered right")
    ended = time.monotonic()
    return {
        "install_s": installed - began,
        "up_s": searchable - installed,
        "search_s": ended - searchable,
        "seconds_to_first_answer": ended - began,
        "asked": count,
    }


def _photos(work: Path) -> tuple[Path, list[tuple[str, Place]]]:
    shown = render_photos(work / "photos")
    return shown.videos, [(s.sentence, Place(s.video, s.start, s.end)) for s in shown.shots if s.sentence]


def _from_set(data: Path, count: int, work: Path) -> tuple[Path, list[tuple[str, Place]]]:
    """A folder of links to the first videos of a set, and their sentences in the order of the file."""
    rows = load_annotations(data / "moments.jsonl").annotations
    chosen = sorted({row.video_id for row in rows})[:count]
    folder = work / "videos"
    folder.mkdir()
    for name in chosen:
        (folder / Path(name).name).symlink_to((data / name).resolve())
    asked = [
        (row.query, Place(Path(row.video_id).name, *row.spans[0])) for row in rows if row.video_id in chosen
    ]
    return folder, asked


def _built(work: Path) -> Path:
    _run(ROOT, sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work / "wheel", ROOT)
    (wheel,) = (work / "wheel").glob("*.whl")
    return wheel


def _run(folder: Path, *words: object) -> str:
    """What a command prints. It runs without this process's package on its path, on its own cluster."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"RAY_ADDRESS": "local"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise VmrError(f"{words[0]} {words[1]} failed: {last[:300]}")
    return done.stdout


if __name__ == "__main__":
    run_command(main)
