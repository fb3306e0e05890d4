"""How accurate the network is, and what each of its parts is worth.

    python -m benchmarks.accuracy --data SLIDES --json accuracy.json

SLIDES holds `train/` and `val/`, each with `moments.jsonl` (`video`, `query`, `start`, `end`; seconds) and
the videos that it names: `python -m benchmarks.slideshows` makes them from captioned photos. Without --data
the demo's generated world is rendered, so that the benchmark runs anywhere; its figures are those of an
easy set.

The rows:

* `full`: the defaults, trained by --workers processes;
* `defaults` and the ablation, which is the defaults with one change each: one process a row, as many side by
  side as there are cores.

Each row is `vmr train` for --epochs, so that its accuracy does not depend on how busy the machine is; its
rate and its minutes do. --minutes ends each row by the clock instead, to compare what equal times are worth.
A row is the last checkpoint of its training on the validation videos, not the best of many. The baselines
come from the same run: the best constant spans of the training set, and the first row with the videos
shuffled among the queries. Then the speed of inference: queries against a cached video of 600 frames on one
core, one by one and 32 in a batch.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.common.output import Figures, JsonOption, print_line, print_table, run_command, write_figures
from benchmarks.common.timing import median_ms
from vmr_ray.cluster import quiet
from vmr_ray.config import load_config
from vmr_ray.demo.world import render_world
from vmr_ray.embedding.embed import embed
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.model.checkpoint import load_network
from vmr_ray.model.loader import load_predictor
from vmr_ray.schema import Progress
from vmr_ray.storage import write_json

# What one row changes; everything else is the default.
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    # The span loss has a low weight because of membership; alone it needs none.
    "no_membership": ("model.membership=false", "train.loss.span=1"),
    "no_start_stop": ("model.start_stop=false",),
    "one_way": ("model.fusion=one-way",),
    "late_fusion": ("model.fusion=late",),
    "no_projection": ("train.loss.contrast=0",),
    "no_negatives": ("train.foreign_pairs=0",),
    "no_neighbours": ("model.context=none",),
    "attention_over_fused": ("model.context=attention",),
    "query_self_attention": ("model.query_layers=1",),
    "no_composition": ("train.compose=0",),
    "saliency": ("train.loss.saliency=0.5",),
    "quality": ("model.quality=true",),
    "pyramid": ("model.pyramid=5",),
}
ROWS = ("full", *VARIANTS)
METRICS = ("r1_at_0.3", "r1_at_0.5", "r1_at_0.7", "miou")
BASELINES = {"constant": "constant span", "shuffled": "videos shuffled"}


@dataclass(frozen=True)
class Data:
    """A feature store of all videos, and the annotations to train and to validate with."""

    features: Path
    train: Path
    val: Path


def main(
    data: Annotated[Path | None, typer.Option(help="folder with train/ and val/; default: rendered")] = None,
    work: Annotated[
        Path | None, typer.Option(help="keep features and runs there; a second call adds the rows it lacks")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the training set, of every row")] = 12,
    minutes: Annotated[
        float | None, typer.Option(help="end every row by the clock instead of after --epochs")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="training processes of `full`")] = os.cpu_count() or 1,
    only: Annotated[
        list[str] | None, typer.Option(help=f"this row only; repeatable: {', '.join(ROWS)}")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, of every row; repeatable")
    ] = None,
    json_: JsonOption = None,
) -> None:
    """Train every row, print the table."""
    quiet()
    if unknown := set(only or ()) - set(ROWS):
        raise VmrError(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    rows = [row for row in ROWS if not only or row in only]
    budget = budget_settings(epochs, minutes)
    settings = {row: [*VARIANTS.get(row, ()), *(set_ or ()), *budget] for row in rows}
    for row in rows:
        load_config(None, settings[row])  # a mistake in --set is reported now, not after an hour
    command = command_line(data, epochs, minutes, workers, only, set_)
    with tempfile.TemporaryDirectory(prefix="vmr-accuracy-") as temporary:
        place = work or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        prepared = prepare(data, place)
        train_all(settings, workers, prepared, place)
        figures: Figures = {}
        for row in rows:
            figures |= {f"{row}.{name}": value for name, value in read_row(place / row).items()}
        evaluation = evaluate(prepared.features, prepared.val, place / rows[0] / "last")
        for baseline in BASELINES:
            figures |= {f"{baseline}.{name}": getattr(evaluation, baseline)[name] for name in METRICS}
        figures |= {f"speed.{k}": v for k, v in speed(place / rows[0] / "last").items()}
    figures["train_minutes"] = figures[f"{rows[0]}.minutes"]
    show(rows, figures)
    print_line(
        f"\n{evaluation.queries} validation queries, {os.cpu_count()} cores; every row: {' '.join(budget)}"
    )
    print_line(command)
    defaults = load_config(None, [*(set_ or ()), *budget]).model_dump(mode="json")
    record = {"command": command, "model": defaults["model"], "train": defaults["train"]}
    write_figures(json_, {**figures, "settings": record})


def budget_settings(epochs: int, minutes: float | None) -> list[str]:
    """How long a row is trained: the settings that say so, and how often it is validated meanwhile."""
    if minutes is None:
        return [f"train.epochs={epochs}", f"train.evaluate_every={max(1, epochs // 4)}"]
    return [f"train.max_minutes={minutes:g}", "train.epochs=100000", "train.evaluate_every=5"]


def command_line(
    data: Path | None,
    epochs: int,
    minutes: float | None,
    workers: int,
    only: Sequence[str] | None,
    settings: Sequence[str] | None,
) -> str:
    """The command that makes these figures, its defaults written out: those of another version may differ."""
    budget = ["--epochs", str(epochs)] if minutes is None else ["--minutes", f"{minutes:g}"]
    words = ["python", "-m", "benchmarks.accuracy", *(["--data", str(data)] if data else []), *budget]
    words += ["--workers", str(workers)]
    words += [word for row in only or () for word in ("--only", row)]
    words += [word for setting in settings or () for word in ("--set", setting)]
    return shlex.join(words)


def prepare(data: Path | None, place: Path) -> Data:
    """Embed all videos, and write an annotation file each for training and validation."""
    prepared = Data(place / "features", place / "train.jsonl", place / "val.jsonl")
    if data is None:
        world = render_world(place / "world", train_videos=96, test_videos=20)
        sources = [world.videos]
        shutil.copy(world.train, prepared.train)
        shutil.copy(world.test, prepared.val)
    else:
        sources = [data]
        for part, file in (("train", prepared.train), ("val", prepared.val)):
            file.write_text(read_annotations(data, part))
    summary = embed(sources, prepared.features, progress=_print_now_and_then("embedding"))
    print_line(f"{summary.videos} videos, {summary.frames} frames embedded in {summary.seconds / 60:.1f} min")
    return prepared


def read_annotations(data: Path, part: str) -> str:
    """The annotations of one part, its name before the videos': both may have files of the same names."""
    path = data / part / "moments.jsonl"
    if not path.is_file():
        raise VmrError(
            f"{path} does not exist: --data names a folder with train/ and val/, moments.jsonl in each"
        )
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return "".join(json.dumps({**row, "video": f"{part}/{row['video']}"}) + "\n" for row in rows)


def _print_now_and_then(name: str) -> Callable[[Progress], None]:
    printed = time.monotonic()

    def progress(now: Progress) -> None:
        nonlocal printed
        if time.monotonic() - printed > 60:
            printed = time.monotonic()
            print_line(f"{name}: {now.done} of {now.videos}")

    return progress


def train_all(settings: dict[str, list[str]], workers: int, data: Data, place: Path) -> None:
    """`full` first, with the whole machine; the others reuse its prepared rows, a core each."""
    if "full" in settings:
        train_row("full", [f"train.workers={workers}", *settings["full"]], data, place)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        trainings = [
            cores.submit(train_row, row, ["train.workers=1", *changes], data, place)
            for row, changes in settings.items()
            if row != "full"
        ]
        for training in trainings:
            training.result()


def train_row(row: str, settings: Sequence[str], data: Data, place: Path) -> None:
    """Train one row in a process (and a Ray) of its own; a row that is finished is left alone.

    Raises:
        VmrError: it was trained with other settings, or its training failed.
    """
    folder, note = place / row, place / f"{row}.settings.json"
    if note.exists() and json.loads(note.read_text()) != list(settings):
        raise VmrError(f"{folder} was trained with other settings: name another --work, or delete it")
    if not (folder / "history.json").exists():
        write_json(note, list(settings))
        _share_prepared(folder, place)
        words = [sys.executable, "-m", "vmr_ray.cli", "train", str(data.features)]
        words += ["--annotations", str(data.train), "--val", str(data.val), "--out", str(folder)]
        words += [word for setting in settings for word in ("--set", setting)]
        env = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
        with (place / f"{row}.log").open("w") as log:
            code = subprocess.run(words, env=env, stdout=log, stderr=log).returncode
        if code:
            text = (place / f"{row}.log").read_text().strip()
            raise VmrError(f"the training of {row} failed with exit code {code}:\n{text[-2000:]}")
    figures = read_row(folder)
    print_line(f"{row}: R@1 IoU=0.5 {figures['r1_at_0.5']:.1f}, IoU=0.7 {figures['r1_at_0.7']:.1f}")


def _share_prepared(folder: Path, place: Path) -> None:
    """Link the prepared rows of a finished training: every row trains on the same ones."""
    finished = (r for r in sorted(place.glob("*/prepared")) if (r.parent / "history.json").exists())
    if (source := next(finished, None)) and not (folder / "prepared").exists():
        shutil.copytree(source, folder / "prepared", copy_function=os.link)


def read_row(folder: Path) -> Figures:
    history = json.loads((folder / "history.json").read_text())
    last = history[-1]
    network, _ = load_network(folder / "last")
    return {
        **{name: last[name] for name in METRICS},
        "parameters": sum(p.numel() for p in network.parameters()),
        "pairs_per_s": statistics.median(epoch["pairs_per_s"] for epoch in history),
        "minutes": last["minutes"],
        "epochs": last["epoch"],
    }


def speed(checkpoint: Path, frames: int = 600, queries: int = 32) -> Figures:
    """Milliseconds a query on one core, its video encoded before."""
    import torch

    torch.set_num_threads(1)
    info = load_network(checkpoint)[1]
    predictor = load_predictor(checkpoint)
    random = np.random.default_rng(0)
    features = random.standard_normal((frames, info.frame_dim)).astype(np.float16)
    windows = predictor.encode_videos([("video", features, np.arange(frames + 1.0))])
    tokens = [random.standard_normal((14, info.token_dim)).astype(np.float16) for _ in range(queries)]

    def rank(asked: list[Any]) -> None:
        encoded = predictor.encode_tokens(asked)
        pairs = [(w, q) for q in range(len(asked)) for w in range(len(windows))]
        predictor.rank(windows, encoded, pairs, top_k=5, nms=0.5)

    single = median_ms(lambda: rank(tokens[:1]), 30)
    batch = median_ms(lambda: rank(tokens), 5) / queries
    return {"one_query_ms": single, "batch_of_32_query_ms": batch, "batch_ratio": single / batch}


def show(rows: Sequence[str], figures: Figures) -> None:
    """The table of all rows and the baselines, and the speed of inference."""
    lines = []
    for row in rows:
        cells = [f"{figures[f'{row}.{name}']:.1f}" for name in METRICS]
        cells += [f"{figures[f'{row}.parameters'] / 1e6:.2f}M", f"{figures[f'{row}.pairs_per_s']:.0f}"]
        lines.append([row, *cells, f"{figures[f'{row}.minutes']:.1f}", f"{figures[f'{row}.epochs']:.0f}"])
    for baseline, name in BASELINES.items():
        lines.append([name, *(f"{figures[f'{baseline}.{metric}']:.1f}" for metric in METRICS)])
    columns = ("R@1 at IoU", "0.3", "0.5", "0.7", "mIoU", "params", "pairs/s", "minutes", "epochs")
    print_table("validation videos, percent", columns, lines)
    single, batch = figures["speed.one_query_ms"], figures["speed.batch_of_32_query_ms"]
    print_line(f"\na query on 600 cached frames, one core: {single:.1f} ms; in a batch of 32: {batch:.1f} ms")


if __name__ == "__main__":
    run_command(main)
