"""Feature store + annotations -> checkpoint: Ray Data prepares, Ray Train (V2) trains with DDP.

OUT/run.json        the configuration and inputs of this run
OUT/prepared/       one row a video: features, its queries' token states, its spans (Parquet)
OUT/run/            Ray Train's own directory; the same command resumes from it
OUT/best, OUT/last  the checkpoints to use
OUT/history.json    the metrics of every validation; the last row says why the training `ended`
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyarrow import fs

from vmr_ray.annotations import AnnotationSource, load_annotations
from vmr_ray.annotations.video_ids import by_video
from vmr_ray.config import Config, TrainConfig
from vmr_ray.encoders import check_texts, default_text_encoder, text_encoder
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.schema import Annotation
from vmr_ray.storage import absolute, filesystem, read_json, write_json
from vmr_ray.training.loop import out_of_patience, train_loop
from vmr_ray.training.prepare import Prepared, prepare, read_rows, split
from vmr_ray.training.tracking import require, tracked

Ended = Literal["epochs", "max_minutes", "patience"]
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoints are and what the best one reached on the validation videos."""

    best: str
    last: str
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    ended: Ended  # the setting that ended the training; the last row of the history has it too
    train_queries: int
    val_queries: int
    outside: int  # annotations whose spans lie outside their video
    without_features: int  # annotations whose video is not in the feature store


def train(
    features: str | Path,
    annotations: AnnotationSource,
    out: str | Path,
    config: Config | None = None,
    val: AnnotationSource | None = None,
    report: Report | None = None,
) -> TrainResult:
    """Train on the annotated videos of a feature store; the same call resumes an interrupted run.

    Args:
        val: annotations to validate on; by default a share of the annotated videos is held out.
        report: called with the metrics of every epoch.

    Raises:
        VmrError: an input is missing or malformed, no annotated video is embedded, `out` holds a run
            with other settings, or a tracker of `config.train.track` cannot be used.
    """
    config = config or Config()
    require(config.train.track)
    store = FeatureStore.open(str(features))
    train_set = load_annotations(annotations)
    val_set = load_annotations(val) if val else None
    given, held_out = train_set.annotations, val_set.annotations if val_set else []
    text_name = config.train.text_encoder or default_text_encoder(store.spec.encoder)
    check_texts(text_name, (a.query for a in [*given, *held_out]))
    out = absolute(out)

    files = store.files()
    groups = {"train": by_video(given, files), "val": by_video(held_out, files)}
    if not val:
        groups["train"], groups["val"] = split(groups["train"], config.train.val_fraction, config.train.seed)
    for name, rows in groups.items():
        if not rows:
            source = val_set if name == "val" and val_set else train_set
            raise VmrError(
                f"no {'video to validate on' if name == 'val' else 'annotated video'} of {source.path} is in "
                f"the feature store {features} ({len(files)} videos there): embed the annotated videos "
                "first, and check that the file names agree"
            )

    _claim(out, config, {"features": store.path, "annotations": _identity(given), "val": _identity(held_out)})

    from vmr_ray.cluster import connect

    connect()
    prepared = {
        name: prepare(f"{out}/prepared/{name}", store, files, rows, text_name)
        for name, rows in groups.items()
    }
    for name, made in prepared.items():
        if not made.queries:
            raise VmrError(
                f"no annotated span of the {name} videos lies inside them: check that the times are seconds"
            )
    info = CheckpointInfo(
        model=config.model,
        frame_encoder=store.spec.encoder,
        frame_dim=store.spec.dim,
        sampling=store.spec.sampling,
        text_encoder=text_name,
        token_dim=text_encoder(text_name).dim,
        constants=prepared["train"].constants(),
    )
    with tracked(out, config, report) as passed_on:
        history, best = _fit(out, prepared, info, config, passed_on)
    found = sum(len(rows) for group in groups.values() for rows in group.values())
    used = {name: made.queries for name, made in prepared.items()}
    return TrainResult(
        best=f"{out}/best",
        last=f"{out}/last",
        metrics=best,
        history=history,
        ended=history[-1]["ended"],
        train_queries=used["train"],
        val_queries=used["val"],
        outside=found - sum(used.values()),
        without_features=len(given) + len(held_out) - found,
    )


def _identity(rows: list[Annotation]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest() if rows else ""


# How long and on how many machines to train may change between two calls of one run.
_FREE = (
    *("epochs", "max_minutes", "patience", "track"),
    *("workers", "min_workers", "use_gpu", "cpus_per_worker"),
)


def identity(config: Config) -> dict[str, Any]:
    """The settings that make two runs different ones."""
    return config.model_dump(mode="json", include={"model", "train"}, exclude={"train": set(_FREE)})


def _claim(out: str, config: Config, inputs: dict[str, str]) -> None:
    """Write OUT/run.json, or check that the run there is the same one."""
    wanted = {"inputs": inputs, **identity(config)}
    fix = "choose another --out, or delete it to start again"
    try:
        found = read_json(f"{out}/run.json", fix)
    except FileNotFoundError:
        write_json(f"{out}/run.json", wanted)
        return
    if found != wanted:
        if not isinstance(found, dict):
            raise VmrError(f"{out}/run.json is not that of a run: {fix}")
        differs = [k for k in wanted if found.get(k) != wanted[k]]
        raise VmrError(f"{out} holds a run with other {', '.join(differs)}: {fix}")


def _fit(
    out: str, prepared: dict[str, Prepared], info: CheckpointInfo, config: Config, report: Report | None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train; returns the rows of all validations and the row of the best checkpoint.

    When a process dies, Ray Train starts all of them again from the last checkpoint, three times at
    most; the loss of a spot machine is not counted. With `min_workers` it starts as many as there is
    room for, looks for room for more every minute, and starts anew from the last checkpoint when
    there is some. Each start splits the rows and the batch among the processes that there are.
    """
    import ray
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings, rows = config.train, prepared["train"]
    if settings.workers > rows.videos:
        raise VmrError(
            f"{settings.workers} workers cannot share {rows.videos} training videos: use fewer workers"
        )
    progress = ray.remote(num_cpus=0)(_Progress).remote()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "info": info.model_dump(mode="json"),
            "rows": rows.videos,
            "row_bytes": rows.size // rows.videos,
            "progress": progress,
            "out": out,
        },
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
        datasets={
            "train": read_rows(prepared["train"], shuffled=True),
            "val": read_rows(prepared["val"]),
        },
        # Every worker sees all validation rows and takes its share itself: none is dropped.
        dataset_config=DataConfig(datasets_to_split=["train"]),
        scaling_config=ScalingConfig(
            num_workers=(settings.min_workers, settings.workers)
            if settings.min_workers
            else settings.workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": _claim_cpus(settings)},
        ),
        run_config=RunConfig(
            name="run",
            storage_path=out,
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=settings.metric),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    with _follow(progress, report):
        result = trainer.fit()
    filesys, path = filesystem(out)
    kept = sorted(result.best_checkpoints, key=lambda pair: pair[1][settings.metric])
    assert result.checkpoint is not None
    for name, checkpoint in (("best", kept[-1][0]), ("last", result.checkpoint)):
        _publish(checkpoint, filesys, f"{path}/{name}")
    with result.checkpoint.as_directory() as directory:
        history: list[dict[str, Any]] = read_json(
            f"{directory}/history.json", "delete the last checkpoint below the run, and train again"
        )
    history[-1]["ended"] = _ended(history, settings)
    write_json(f"{out}/history.json", history)
    return history, kept[-1][1]


def _ended(history: list[dict[str, float]], config: TrainConfig) -> Ended:
    if history[-1]["epoch"] >= config.epochs:
        return "epochs"
    return "patience" if out_of_patience(history, config) else "max_minutes"


def _claim_cpus(config: TrainConfig) -> float:
    """CPUs that a training process claims of Ray: less than asked for, and not all, if they are few."""
    import ray

    from vmr_ray.cluster import cluster_cpus

    if not ray.cluster_resources().get("CPU"):  # all machines are yet to come
        return config.cpus_per_worker
    return min(
        config.cpus_per_worker, max(0.25, (cluster_cpus() - 1) / (config.min_workers or config.workers))
    )


def _publish(checkpoint: Any, filesys: fs.FileSystem, target: str) -> None:
    """Copy what inference needs; the JSON goes last."""
    filesys.create_dir(target, recursive=True)
    for name in ("model.safetensors", "checkpoint.json"):
        fs.copy_files(
            f"{checkpoint.path}/{name}",
            f"{target}/{name}",
            source_filesystem=checkpoint.filesystem,
            destination_filesystem=filesys,
        )


class _Progress:
    """An actor between the training processes and whoever watches."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def after(self, seen: int) -> list[dict[str, float]]:
        return self.rows[seen:]


@contextmanager
def _follow(progress: Any, report: Report | None) -> Iterator[None]:
    """Pass the rows of the progress actor to `report` while the body runs."""
    import ray

    done = threading.Event()
    seen = 0

    def pass_on() -> None:
        nonlocal seen
        with suppress(ray.exceptions.RayError):  # to lose sight of a training is not to lose it
            for row in ray.get(progress.after.remote(seen)):
                seen += 1
                if report:
                    report(row)

    def watch() -> None:
        while not done.wait(0.5):
            pass_on()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    pass_on()
