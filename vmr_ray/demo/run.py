"""Every step from nothing to an answer over HTTP, with the functions behind the verbs of `vmr`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vmr_ray.config import Config, DecodeConfig, EmbedConfig, ModelConfig, TrainConfig
from vmr_ray.demo.world import render_world
from vmr_ray.embedding.embed import embed
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.evaluation.metrics import iou
from vmr_ray.evaluation.tables import metrics_table
from vmr_ray.search.build import build_index
from vmr_ray.training.train import train

# A small network, and half a CPU for each process, so that two train at once on two cores and Ray Data still
# has room. Half the usual batch, because more steps matter most in so short a training.
CONFIG = Config(
    embed=EmbedConfig(decode=DecodeConfig(sampling="fps=2")),
    model=ModelConfig(dim=128, heads=4, dropout=0.1),
    train=TrainConfig(
        workers=min(2, os.cpu_count() or 1),
        cpus_per_worker=0.5,
        epochs=100,
        max_minutes=1.8,
        batch_videos=16,
        fused_pairs=32,
        evaluate_every=10,
        lr=2e-3,
    ),
)
QUESTIONS = 5


def run(directory: Path, stay: bool = True, port: int = 8000) -> None:
    """Render, embed, train, evaluate, index, serve and ask; with `stay`, serve until Ctrl-C.

    A second run in the same directory uses what is finished there.

    Raises:
        VmrError: the port is taken.
    """
    from vmr_ray.serve.local import check_port, serve_until_interrupt, start, stop

    out = Console()
    check_port("127.0.0.1", port)  # now, and not after minutes of work
    with _step(out, "1 render a small world (H.264)") as update:
        world = render_world(
            directory / "world",
            train_videos=96,
            test_videos=20,
            progress=update,
        )
    with _step(out, "2 embed the frames (Ray Data)") as update:
        embedded = embed(
            [world.videos],
            directory / "features",
            CONFIG.embed,
            lambda now: update(now.done + now.failed, now.videos),
        )
    with _step(out, "3 train the network (Ray Train)") as update:
        trained = train(
            directory / "features",
            world.train,
            directory / "run",
            CONFIG,
            report=lambda row: update(row["epoch"], row["epochs"]),
        )
    with _step(out, "4 evaluate on unseen combinations"):
        measured = evaluate(directory / "features", world.test, trained.best, directory / "report")
    with _step(out, "5 index every video (LanceDB)") as update:
        if (directory / "index").exists():
            shutil.rmtree(directory / "index")  # it may be of the checkpoint of an earlier run
        indexed = build_index(directory / "features", trained.best, directory / "index", progress=update)
    with _step(out, "6 serve (Ray Serve)"):
        url = start(directory / "index", port=port)
    out.print(
        f"{embedded.videos} videos, {len(embedded.quarantined)} quarantined; "
        f"{trained.train_queries} training queries; {indexed.segments} segments indexed"
    )
    out.print(metrics_table(measured))
    out.print(_ask(url, world.test))
    ratio = measured.model["r1_at_0.5"] / max(measured.constant["r1_at_0.5"], 1e-9)
    out.print(
        f"R@1 IoU=0.5: {measured.model['r1_at_0.5']:.1f}, {ratio:.1f} times the "
        f"{measured.constant['r1_at_0.5']:.1f} of the best constant span",
        highlight=False,
    )
    if stay:
        out.print(
            f"Open {url} and ask in your own words ({url}docs has the API). Ctrl-C stops.", highlight=False
        )
        serve_until_interrupt()
    else:
        stop()


def _ask(url: str, test: Path) -> Table:
    """Ask the service about test videos, over HTTP; a table of its answers next to the truth."""
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    questions = rows[:: max(1, len(rows) // QUESTIONS)][:QUESTIONS]
    table = Table(title=f"POST {url}v1/search", box=box.SIMPLE)
    for name in ("query, and where it is true", "searched", "best answer", "IoU", "rank"):
        table.add_column(name, justify="right" if name in ("IoU", "rank") else "left")
    table.caption = "rank: of the first answer that overlaps the true moment by half, in ten"
    with httpx.Client(base_url=url, timeout=30) as client:
        for row in questions:
            for scope in ([row["video"]], None):
                body: dict[str, Any] = {"query": row["query"], "top_k": 10, "video_ids": scope}
                response = client.post("v1/search", json=body)
                response.raise_for_status()
                moments = response.json()["results"]
                ious = [_iou(moment, row) for moment in moments]
                rank = next((i for i, iou in enumerate(ious, 1) if iou >= 0.5), None)
                best = moments[0]
                table.add_row(
                    row["query"] if scope else _place(row["video"], row["start"], row["end"]),
                    "its video" if scope else "all videos",
                    _place(best["video_id"], best["start"], best["end"]),
                    f"{ious[0]:.2f}",
                    str(rank or "-"),
                    end_section=not scope,
                )
    return table


def _place(video: str, start: float, end: float) -> str:
    return f"{Path(video).stem} {start:.1f}-{end:.1f} s"


def _iou(moment: dict[str, Any], truth: dict[str, Any]) -> float:
    """The IoU with the true moment; 0 for a moment of another video."""
    if moment["video_id"] != truth["video"]:
        return 0.0
    return float(iou([(moment["start"], moment["end"])], [(truth["start"], truth["end"])])[0, 0])


@contextmanager
def _step(out: Console, name: str) -> Iterator[Any]:
    """A line for one step, with a bar; yields `update(done, total)`."""
    columns = (SpinnerColumn(), TextColumn("{task.description:36}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
        progress.update(task, total=1, completed=1)
