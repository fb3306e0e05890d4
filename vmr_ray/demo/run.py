"""`vmr demo`: searching real photos without any training, then training on a drawn world.

DIR/photos/   videos of photos, their features and index
DIR/world/    the drawn world; DIR/features, run, report and index are what the training and its steps leave
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vmr_ray.config import Config, DecodeConfig, EmbedConfig, ModelConfig, TrainConfig
from vmr_ray.demo.answers import HIT, TOP_K, Answer, Place, answers_table, compare
from vmr_ray.demo.photos import Shot, render_photos
from vmr_ray.demo.world import render_world
from vmr_ray.embedding.embed import embed
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.evaluation.tables import metrics_table
from vmr_ray.search.build import build_index
from vmr_ray.search.searcher import Searcher
from vmr_ray.training.train import train
from vmr_ray.workflows.up import up

HOST = "127.0.0.1"


# The training ends by epochs, so its result does not depend on how busy the machine is. One process of one
# thread: several would get the rows that they share as they come, and threads wait for each other where other
# programs take their cores. A small network and small batches, because in so short a training the number of
# steps matters most. Three training videos are held out, the fewest that scores can be calibrated with; the
# last checkpoint is taken whatever they say.
CONFIG = Config(
    embed=EmbedConfig(decode=DecodeConfig(sampling="fps=2")),
    model=ModelConfig(dim=64, fusion_dim=64, heads=4, dropout=0.1),
    train=TrainConfig(
        epochs=60,
        evaluate_every=60,
        batch_videos=4,
        queries_per_video=6,
        fused_pairs=12,
        lr=4e-3,
        val_fraction=0.075,
    ),
)
TRAIN_VIDEOS, TEST_VIDEOS, WORDS = 40, 12, 4
FRAMES_PER_SECOND, SIZE = 6, 160  # of the drawn videos: enough for what is sampled and seen of them
QUESTIONS = 5


def run(directory: Path, stay: bool = True, port: int = 8000) -> None:
    """Both acts; with `stay`, serve the photos until Ctrl-C.

    A second run in the same directory uses what is finished there.

    Raises:
        VmrError: the port is taken.
    """
    from vmr_ray.serve.local import check_port, serve_until_interrupt, start, stop

    out = Console()
    check_port(HOST, port)  # now, and not after minutes of work
    start_ray()
    index = search_photos(out, directory / "photos", port)
    train_on_drawn_world(out, directory)
    if not stay:
        stop()
        return
    url = start(index, HOST, port)
    _line(out, f"Open {url} and ask about the photos in your own words. Ctrl-C stops. Or:")
    body = json.dumps({"query": "a cup of coffee", "top_k": 1})
    _line(out, f"curl -s {url}v1/search -H 'content-type: application/json' -d '{body}'")
    serve_until_interrupt()


def start_ray() -> None:
    """Join a cluster, or start one without what only a cluster that others watch or share needs."""
    from vmr_ray.cluster import connect

    # Ray's workers give way to other programs (niceness 15), so next to two busy ones they would stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    connect(include_dashboard=False)


def search_photos(out: Console, directory: Path, port: int) -> str:
    """Act one: videos of photos become searchable, untrained, and answer sentences over HTTP.

    Returns:
        The index, which is no longer served.
    """
    from vmr_ray.serve.local import start, withdraw

    out.rule("Real photos, plain words, no training")
    with _step(out, "render photos as videos (H.264)") as update:
        photos = render_photos(directory, update)
    if photos.missing:
        _line(out, f"{photos.missing} photos are not installed: pip install 'vmr-ray[demo]' brings them")
    with _step(out, "embed and index (Ray Data, LanceDB)") as update:
        # Without a model, as `vmr up FOLDER`.
        searchable = up(
            photos.videos, state=directory, embed_progress=lambda now: update(now.done, now.videos)
        )
    with _step(out, "serve (Ray Serve)"):
        url = start(searchable.index, HOST, port)
    shots = [shot for shot in photos.shots if shot.sentence]
    with httpx.Client(base_url=url, timeout=60) as client:
        answers = [_ask(client, shot) for shot in shots]
    withdraw()  # the training needs the CPUs
    out.print(answers_table(f"POST {url}v1/search in all {searchable.videos} videos", answers))
    right = sum(answer.rank == 1 for answer in answers)
    _line(
        out,
        f"best answer right: {right} of {len(answers)} (guessing one of the {len(photos.shots)} shots: "
        f"{len(answers) / len(photos.shots):.1f})",
    )
    return searchable.index


def _ask(client: httpx.Client, shot: Shot) -> Answer:
    response = client.post("v1/search", json={"query": shot.sentence, "top_k": TOP_K})
    response.raise_for_status()
    found = [Place(row["video_id"], row["start"], row["end"]) for row in response.json()["results"]]
    return compare(shot.sentence, Place(shot.video, shot.start, shot.end), found)


def train_on_drawn_world(
    out: Console,
    directory: Path,
    train_videos: int = TRAIN_VIDEOS,
    test_videos: int = TEST_VIDEOS,
    words: int | None = WORDS,
    config: Config = CONFIG,
) -> None:
    """Act two: train on drawn videos, evaluate on combinations that training never saw, and search them."""
    features, index = directory / "features", directory / "index"
    out.rule("A drawn world: train, evaluate, search")
    with _step(out, "draw videos (H.264)") as update:
        world = render_world(
            directory / "world",
            train_videos,
            test_videos,
            fps=FRAMES_PER_SECOND,
            size=SIZE,
            words=words,
            progress=update,
        )
    with _step(out, "embed the frames (Ray Data)") as update:
        embedded = embed(
            [world.videos], features, config.embed, lambda now: update(now.done + now.failed, now.videos)
        )
    with _step(out, "train the network (Ray Train)") as update:
        trained = train(
            features,
            world.train,
            directory / "run",
            config,
            report=lambda row: update(row["epoch"], row["epochs"]),
        )
    with _step(out, "evaluate on unseen combinations"):
        measured = evaluate(features, world.test, trained.best, directory / "report")
    with _step(out, "index every video (LanceDB)") as update:
        if index.exists():
            shutil.rmtree(index)  # it may be of the checkpoint of an earlier run
        indexed = build_index(features, trained.best, index, progress=update)
    _line(
        out,
        f"{embedded.videos} videos; {trained.train_queries} training queries; "
        f"{indexed.segments} segments indexed",
    )
    out.print(metrics_table(measured))
    rows = [json.loads(line) for line in world.test.read_text().splitlines()]
    rows = rows[:: max(1, len(rows) // QUESTIONS)][:QUESTIONS]
    results = (Searcher(index).search(row["query"], TOP_K) for row in rows)
    answers = [
        compare(
            row["query"],
            Place(row["video"], row["start"], row["end"]),
            [Place(m.video_id, m.start, m.end) for m in result.moments],
        )
        for row, result in zip(rows, results, strict=True)
    ]
    out.print(answers_table(f"in all {indexed.videos} videos", answers))
    key = f"r1_at_{HIT}"
    _line(
        out,
        f"R@1 IoU={HIT}: {measured.model[key]:.1f}; the best constant span: {measured.constant[key]:.1f}",
    )


def _line(out: Console, text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _step(out: Console, name: str) -> Iterator[Any]:
    """A line for one step, with a bar; yields `update(done, total)`."""
    columns = (SpinnerColumn(), TextColumn("{task.description:36}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
        progress.update(task, total=1, completed=1)
