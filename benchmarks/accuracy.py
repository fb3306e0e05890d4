"""How accurate the model is, and what each of its parts is worth, at equal training time.

    python benchmarks/accuracy.py --data SLIDES --json accuracy.json

SLIDES holds `train/` and `val/`, each with `moments.jsonl` (`video`, `query`, `start`, `end`; seconds) and
the videos that it names. Without --data the demo's generated world is rendered, so that the benchmark runs
anywhere; its figures are those of an easy set.

Three kinds of rows:

* `full`: the defaults, on --workers cores for --minutes;
* `full_one_core_24min` (the minutes of --one-core-minutes): the defaults on one core, to compare with
  networks that were trained as long;
* the ablation: the defaults and one change each, on one core for --ablation-minutes.

One-core trainings run side by side, one a core, so that they share the machine in the same way. Every
row is the last checkpoint of its training on the validation videos, not the best of many. The controls
(best constant span of the training set; `full` with the videos shuffled among the queries) are printed
with it. Then the speed of inference: a query against a cached video of 600 frames on one core, one by
one and 32 in a batch.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from vmr_ray.config import load_config
from vmr_ray.demo.world import render_world
from vmr_ray.embedding.embed import embed
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.model.checkpoint import load_network
from vmr_ray.model.network_predictor import NetworkPredictor
from vmr_ray.training.train import train

# What one row changes; everything else is the default.
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    # Alone, the span loss need leave nothing to another.
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
METRICS = ("r1_at_0.3", "r1_at_0.5", "r1_at_0.7", "miou")
out = Console(width=120)
Figures = dict[str, float]


def main(
    data: Annotated[Path | None, typer.Option(help="folder with train/ and val/; default: rendered")] = None,
    work: Annotated[
        Path | None, typer.Option(help="keep features and runs there; a second call goes on with them")
    ] = None,
    minutes: Annotated[float, typer.Option(help="training time of `full`")] = 40,
    workers: Annotated[int, typer.Option(help="training processes of `full`")] = os.cpu_count() or 1,
    one_core_minutes: Annotated[float, typer.Option(help="training time of `full_one_core_*`")] = 24,
    ablation_minutes: Annotated[float, typer.Option(help="training time of a row of the ablation")] = 6,
    only: Annotated[
        list[str] | None, typer.Option(help="this row only; repeatable: " + ", ".join(["full", *VARIANTS]))
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the figures there, flat keys")] = None,
) -> None:
    """Train every row, print the table."""
    one_core = f"full_one_core_{one_core_minutes:g}min"
    rows = [row for row in ("full", one_core, *VARIANTS) if not only or row in only]
    with tempfile.TemporaryDirectory(prefix="vmr-accuracy-") as temporary:
        place = work or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        features, annotations = prepare(data, place)
        jobs = {row: one_core_minutes if row == one_core else ablation_minutes for row in rows}
        jobs.pop("full", None)
        figures: Figures = {}
        if "full" in rows:
            # First, and with the whole machine; the others then reuse its prepared rows.
            train_row("full", (), minutes, workers, features, annotations, place)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
            waiting = [
                cores.submit(train_row, row, VARIANTS.get(row, ()), time_, 1, features, annotations, place)
                for row, time_ in sorted(jobs.items(), key=lambda job: -job[1])
            ]
            for done in waiting:
                done.result()
        for row in rows:
            figures |= {f"{row}.{name}": value for name, value in read_row(place / row).items()}
        reference = next(row for row in rows if row in ("full", one_core, *VARIANTS))
        found = evaluate(features, annotations["val"], place / reference / "best")
        for control in ("constant", "shuffled"):
            figures |= {f"{control}.{name}": getattr(found, control)[name] for name in METRICS}
        figures |= {f"speed.{k}": v for k, v in speed(place / reference / "best").items()}
        figures["train_minutes"] = figures[f"{reference}.minutes"]
        show(rows, figures)
        if json_:
            json_.write_text(json.dumps(figures, indent=1))


def prepare(data: Path | None, place: Path) -> tuple[Path, dict[str, Path]]:
    """The feature store of all videos, and an annotation file for each of train and val."""
    annotations = {name: place / f"{name}.jsonl" for name in ("train", "val")}
    features = place / "features"
    if data is None:
        world = render_world(place / "world", train_videos=96, test_videos=20)
        sources = [world.videos]
        for name, file in (("train", world.train), ("val", world.test)):
            shutil.copy(file, annotations[name])
    else:
        sources = [data]
        for name, file in annotations.items():
            lines = [json.loads(line) for line in (data / name / "moments.jsonl").open()]
            # The two folders may have files of equal names.
            named = [json.dumps({**line, "video": f"{name}/{line['video']}"}) for line in lines]
            file.write_text("\n".join(named) + "\n")
    summary = embed(sources, features, progress=progress("embedding"))
    out.print(f"{summary.videos} videos, {summary.frames} frames embedded in {summary.seconds / 60:.1f} min")
    return features, annotations


def progress(name: str) -> Callable[[Any], None]:
    said = time.monotonic()

    def report(now: Any) -> None:
        nonlocal said
        if time.monotonic() - said > 60:
            said = time.monotonic()
            out.print(f"{name}: {now.done} of {now.videos}", highlight=False)

    return report


def train_row(
    row: str,
    changes: Sequence[str],
    minutes: float,
    workers: int,
    features: Path,
    annotations: dict[str, Path],
    place: Path,
) -> None:
    """Train one row in a process (and a Ray) of its own; a row that is finished is left alone."""
    run = place / row
    if (run / "history.json").exists():
        return
    done = next((r for r in place.glob("*/prepared") if (r.parent / "history.json").exists()), None)
    if done and not (run / "prepared").exists():
        shutil.copytree(done, run / "prepared", copy_function=os.link)
    settings = [
        *changes,
        f"train.workers={workers}",
        f"train.max_minutes={minutes}",
        "train.epochs=100000",
        f"train.evaluate_every={5 if minutes < 15 else 10}",
    ]
    command = [sys.executable, __file__, "--row", str(features), *map(str, annotations.values()), str(run)]
    env = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    with (place / f"{row}.log").open("w") as log:
        subprocess.run([*command, *settings], env=env, stdout=log, stderr=log, check=True)
    last = json.loads((run / "history.json").read_text())[-1]
    out.print(f"{row}: R@1 IoU=0.5 {last['r1_at_0.5']:.1f}, IoU=0.7 {last['r1_at_0.7']:.1f}", highlight=False)


def one_row(features: str, train_file: str, val_file: str, run: str, *settings: str) -> None:
    train(features, train_file, run, load_config(None, list(settings)), val_file)


def read_row(run: Path) -> Figures:
    history = json.loads((run / "history.json").read_text())
    last = history[-1]
    network, _ = load_network(run / "last")
    return {
        **{name: last[name] for name in METRICS},
        "parameters": sum(p.numel() for p in network.parameters()),
        "pairs_per_s": statistics.median(r["pairs_per_s"] for r in history),
        "minutes": last["minutes"],
        "epochs": last["epoch"],
    }


def speed(checkpoint: Path, frames: int = 600, queries: int = 32) -> Figures:
    """Milliseconds a query on one core, its video encoded before."""
    import torch

    torch.set_num_threads(1)
    network, info = load_network(checkpoint)
    predictor = NetworkPredictor(network, info)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((frames, info.frame_dim)).astype(np.float16)
    seen = predictor.encode_videos([("video", features, np.arange(frames + 1.0))])
    tokens = [rng.standard_normal((14, info.token_dim)).astype(np.float16) for _ in range(queries)]

    def ask(some: list[np.ndarray]) -> None:
        encoded = predictor.encode_tokens(some)
        pairs = [(w, q) for q in range(len(some)) for w in range(len(seen))]
        predictor.rank(seen, encoded, pairs, top_k=5, nms=0.5)

    single = milliseconds(lambda: ask(tokens[:1]), 30)
    batch = milliseconds(lambda: ask(tokens), 5) / queries
    return {"one_query_ms": single, "batch_of_32_query_ms": batch, "batch_ratio": single / batch}


def milliseconds(call: Callable[[], None], times: int) -> float:
    call()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def show(rows: Sequence[str], figures: Figures) -> None:
    table = Table(title="validation videos, percent")
    for name in ("", "R@1 IoU=0.3", "0.5", "0.7", "mIoU", "parameters", "pairs/s", "minutes"):
        table.add_column(name, justify="right" if name else "left")
    for row in (*rows, "constant", "shuffled"):
        cells = [f"{figures[f'{row}.{name}']:.1f}" for name in METRICS]
        if row in rows:
            cells += [
                f"{figures[f'{row}.parameters'] / 1e6:.2f} M",
                f"{figures[f'{row}.pairs_per_s']:.0f}",
                f"{figures[f'{row}.minutes']:.1f}",
            ]
        table.add_row(row, *cells)
    out.print(table)
    out.print(
        "one query on 600 cached frames, one core: {one_query_ms:.1f} ms; in a batch of 32: "
        "{batch_of_32_query_ms:.1f} ms a query ({batch_ratio:.2f}x)".format(
            **{k.removeprefix("speed."): v for k, v in figures.items() if k.startswith("speed.")}
        ),
        highlight=False,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        one_row(*sys.argv[2:])
    else:
        typer.run(main)
