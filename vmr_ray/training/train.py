"""Feature store + annotations -> checkpoint: Ray Data prepares, Ray Train (V2) trains with DDP.

OUT/run.json        the configuration and inputs of this run
OUT/prepared/       one row a video: features, its queries' token states, its spans (Parquet)
OUT/run/            Ray Train's own directory; the same call resumes from it
OUT/best, OUT/last  the checkpoints to use
OUT/history.json    the metrics of every validation; `ended` in the last row is why the training ended
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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
from vmr_ray.schema import Annotation, StoreSpec
from vmr_ray.storage import absolute, filesystem, join, naming_full_disk, read_json, replacing, write_json
from vmr_ray.training.loop import train_loop
from vmr_ray.training.prepare import Prepared, prepare, read_rows, split
from vmr_ray.training.schedule import out_of_patience
from vmr_ray.training.tracking import require, tracked
from vmr_ray.training.trainer_state import load_state

Ended = Literal["epochs", "max_minutes", "patience"]
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoints are, and the metrics of the best one on the validation videos."""

    best: str
    last: str
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    ended: Ended  # the setting that ended the training, also in the last row of the history
    train_queries: int
    val_queries: int
    outside: int = 0  # annotations whose spans lie outside their video
    without_features: int = 0  # annotations whose video is not in the feature store


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
    # Read and check the inputs.
    config = config or Config()
    require(config.train.track)
    store = FeatureStore.open(str(features))
    train_set = load_annotations(annotations)
    val_set = load_annotations(val) if val else None
    train_annotations = train_set.annotations
    val_annotations = val_set.annotations if val_set else []
    text_name = config.train.text_encoder or default_text_encoder(store.spec.encoder)
    check_texts(text_name, (a.query for a in [*train_annotations, *val_annotations]))
    out = absolute(out)

    # Group the annotations by embedded video; hold some videos out if there is no validation file.
    files = store.files()
    groups = {"train": by_video(train_annotations, files), "val": by_video(val_annotations, files)}
    if not val:
        groups["train"], groups["val"] = split(groups["train"], config.train.val_fraction, config.train.seed)
    for name, what, source in (
        ("train", "annotated video", train_set),
        ("val", "video to validate on", val_set or train_set),
    ):
        if not groups[name]:
            raise VmrError(
                f"no {what} of {source.path} is in the feature store {features} ({len(files)} videos there): "
                "embed the annotated videos first, and check that the file names agree"
            )
    claim_run(out, config, run_inputs(store.path, train_annotations, val_annotations))

    # Prepare the rows.
    from vmr_ray.cluster import connect

    connect()
    prepared = {
        name: prepare(f"{out}/prepared/{name}", store, files, group, text_name)
        for name, group in groups.items()
    }
    for name, rows in prepared.items():
        if not rows.queries:
            raise VmrError(
                f"no annotated span of the {name} videos lies inside them: check that the times are seconds"
            )

    # Train.
    info = _checkpoint_info(config, store.spec, text_name, prepared["train"])
    result = fit(out, prepared, info, config, report)
    with_features = sum(len(rows) for group in groups.values() for rows in group.values())
    return replace(
        result,
        outside=with_features - result.train_queries - result.val_queries,
        without_features=len(train_annotations) + len(val_annotations) - with_features,
    )


def _checkpoint_info(config: Config, spec: StoreSpec, text_name: str, rows: Prepared) -> CheckpointInfo:
    return CheckpointInfo(
        model=config.model,
        frame_encoder=spec.encoder,
        frame_dim=spec.dim,
        sampling=spec.sampling,
        fit=spec.fit,
        text_encoder=text_name,
        token_dim=text_encoder(text_name).dim,
        constants=rows.constants(),
    )


def run_inputs(features: str, annotations: list[Annotation], val: list[Annotation]) -> dict[str, str]:
    """What distinguishes a run from others with the same settings; `features` is the store's path."""
    digests = [hashlib.sha256(repr(rows).encode()).hexdigest() if rows else "" for rows in (annotations, val)]
    return dict(zip(("features", "annotations", "val"), (features, *digests), strict=True))


# Settings that may change between two calls of one run: how long, and on how many machines, to train.
_CHANGEABLE = {
    *("epochs", "max_minutes", "patience", "track"),
    *("workers", "min_workers", "use_gpu", "cpus_per_worker"),
}


def identity(config: Config) -> dict[str, Any]:
    """The settings that distinguish one run from another."""
    return config.model_dump(mode="json", include={"model", "train"}, exclude={"train": _CHANGEABLE})


def claim_run(out: str, config: Config, inputs: dict[str, str]) -> None:
    """Write OUT/run.json, or check that the run in OUT has the same settings and inputs.

    Raises:
        VmrError: it has others, or its run.json is damaged.
    """
    wanted = {"inputs": inputs, **identity(config)}
    fix = "choose another --out, or delete it to start again"
    try:
        stored = read_json(join(out, "run.json"), fix)
    except FileNotFoundError:
        write_json(join(out, "run.json"), wanted)
        return
    if not isinstance(stored, dict):
        raise VmrError(f"{out}/run.json does not describe a run: {fix}")
    if differing := [key for key in wanted if stored.get(key) != wanted[key]]:
        raise VmrError(f"{out} holds a run with other {', '.join(differing)}: {fix}")


def fit(
    out: str, prepared: dict[str, Prepared], info: CheckpointInfo, config: Config, report: Report | None
) -> TrainResult:
    """Train a network of `info` on prepared rows in OUT; see `train`."""
    with naming_full_disk(join(out, "run")), tracked(out, config, report) as tracked_report:
        history, best_metrics = _fit(out, prepared, info, config, tracked_report)
    return TrainResult(
        best=f"{out}/best",
        last=f"{out}/last",
        metrics=best_metrics,
        history=history,
        ended=history[-1]["ended"],
        train_queries=prepared["train"].queries,
        val_queries=prepared["val"].queries,
    )


def _fit(
    out: str, prepared: dict[str, Prepared], info: CheckpointInfo, config: Config, report: Report | None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Train; returns the rows of all validations and the row of the best checkpoint.

    When a process dies, Ray Train restarts all of them from the last checkpoint, at most three times; the
    loss of a spot machine does not count. With `min_workers` it starts as many processes as there is room
    for, looks for more room every minute, and restarts from the last checkpoint when there is some. Every
    start splits the rows and the batch among the processes.
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
            "val_rows": prepared["val"].videos,
            "row_bytes": rows.size // rows.videos,
            "progress": progress,
            "out": out,
        },
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
        datasets={
            "train": read_rows(prepared["train"], shuffled=True),
            "val": read_rows(prepared["val"]),
        },
        # Ray splits into equal shards and drops the rest, so every worker gets all validation rows and takes
        # its own share of them.
        dataset_config=DataConfig(datasets_to_split=["train"]),
        scaling_config=ScalingConfig(
            num_workers=(settings.min_workers, settings.workers)
            if settings.min_workers
            else settings.workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": _cpus_per_worker(settings)},
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

    # Publish the checkpoints and the history.
    filesys, path = filesystem(out)
    by_metric = sorted(result.best_checkpoints, key=lambda pair: pair[1][settings.metric])
    best, best_metrics = by_metric[-1]
    assert result.checkpoint is not None
    for name, checkpoint in (("best", best), ("last", result.checkpoint)):
        _publish(checkpoint, filesys, f"{path}/{name}")
    with result.checkpoint.as_directory() as directory:
        history: list[dict[str, Any]] = load_state(directory).history
    history[-1]["ended"] = _ended(history, settings)
    write_json(join(out, "history.json"), history)
    return history, best_metrics


def _ended(history: list[dict[str, float]], config: TrainConfig) -> Ended:
    if history[-1]["epoch"] >= config.epochs:
        return "epochs"
    return "patience" if out_of_patience(history, config) else "max_minutes"


def _cpus_per_worker(config: TrainConfig) -> float:
    """CPUs that a training process reserves in Ray: those of the config, or fewer if the cluster is small."""
    import ray

    from vmr_ray.cluster import cluster_cpus

    if not ray.cluster_resources().get("CPU"):  # no worker machine has started yet
        return config.cpus_per_worker
    processes = config.min_workers or config.workers
    # One CPU is left to Ray Data.
    return min(config.cpus_per_worker, max(0.25, (cluster_cpus() - 1) / processes))


def _publish(checkpoint: Any, filesys: fs.FileSystem, target: str) -> None:
    """Copy the files that inference needs. The JSON is copied last, so a directory that has one is whole."""
    for name in ("model.safetensors", "checkpoint.json"):
        with (
            checkpoint.filesystem.open_input_stream(f"{checkpoint.path}/{name}") as source,
            replacing(filesys, f"{target}/{name}") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)


class _Progress:
    """An actor that collects the metrics of every epoch for the driver."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def after(self, count: int) -> list[dict[str, float]]:
        """All rows but the first `count`."""
        return self.rows[count:]


@contextmanager
def _follow(progress: Any, report: Report | None) -> Iterator[None]:
    """Pass the rows of the progress actor to `report` while the body runs."""
    import ray

    done = threading.Event()
    count = 0

    def pass_on() -> None:
        nonlocal count
        with suppress(ray.exceptions.RayError):  # the training goes on even if its progress is unknown
            for row in ray.get(progress.after.remote(count)):
                count += 1
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
