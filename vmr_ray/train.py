"""Feature store + annotations -> checkpoint: Ray Data prepares, Ray Train (V2) trains with DDP.

OUT/run.json        the configuration and inputs of this run
OUT/prepared/       one row a video: features, its queries' token states, its spans (Parquet)
OUT/run/            Ray Train's own directory; the same command resumes from it
OUT/best, OUT/last  the checkpoints to use
OUT/history.json    the metrics of every validation
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs
from torch import Tensor, nn

from vmr_ray.annotations import load_annotations
from vmr_ray.batches import ROW_SCHEMA, Example, collate, crop, from_row, to_row
from vmr_ray.checkpoint import (
    CheckpointInfo,
    load_info,
    load_trainer,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from vmr_ray.config import Config, TrainConfig
from vmr_ray.controls import fit_constants
from vmr_ray.encoders import default_text_encoder, text_encoder
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore, resolve_ids
from vmr_ray.metrics import moment_metrics
from vmr_ray.model.augment import compose, draw_queries, drop_tokens
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.model.objective import Objective
from vmr_ray.model.predictor import Predictor
from vmr_ray.schema import Annotation
from vmr_ray.sources import filesystem

_TOKENS = 16  # of a query in training: longer rows cost time and teach little
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoints are and what the best one reached on the validation videos."""

    best: str
    last: str
    metrics: dict[str, float]
    history: list[dict[str, float]]
    train_queries: int
    val_queries: int
    outside: int  # annotations whose spans lie outside their video
    without_features: int  # annotations whose video is not in the feature store


def train(
    features: str | Path,
    annotations: str | Path,
    out: str | Path,
    config: Config | None = None,
    val: str | Path | None = None,
    report: Report | None = None,
) -> TrainResult:
    """Train on the annotated videos of a feature store; the same call resumes an interrupted run.

    Args:
        val: annotations to validate on; by default a share of the annotated videos is held out.
        report: called with the metrics of every epoch.

    Raises:
        VmrError: an input is missing or malformed, no annotated video is embedded, or `out` holds
            a run with other settings.
    """
    config = config or Config()
    store = FeatureStore.open(str(features))
    given = load_annotations(annotations)
    held_out = load_annotations(val) if val else []
    text_name = config.train.text_encoder or default_text_encoder(store.spec.encoder)
    out = str(out) if "://" in str(out) else str(Path(out).expanduser().absolute())

    files = store.files()
    ids = resolve_ids((a.video_id for a in [*given, *held_out]), files)
    groups = {name: _by_video(rows, ids) for name, rows in (("train", given), ("val", held_out))}
    if not val:
        groups["train"], groups["val"] = split(groups["train"], config.train.val_fraction, config.train.seed)
    for name, rows in groups.items():
        if not rows:
            source = val if name == "val" and val else annotations
            raise VmrError(
                f"no {'video to validate on' if name == 'val' else 'annotated video'} of {source} is in the "
                f"feature store {features} ({len(files)} videos there): embed the annotated videos first, "
                "and check that the file names agree"
            )

    _claim(out, config, {"features": store.path, "annotations": _identity(given), "val": _identity(held_out)})

    from vmr_ray.runtime import connect

    connect()
    prepared = {
        name: _prepare(f"{out}/prepared/{name}", store, files, rows, text_name)
        for name, rows in groups.items()
    }
    info = CheckpointInfo(
        model=config.model,
        frame_encoder=store.spec.encoder,
        frame_dim=store.spec.dim,
        sampling=store.spec.sampling,
        text_encoder=text_name,
        token_dim=text_encoder(text_name).dim,
        constants=_constants(prepared["train"]),
    )
    known = {name: _queries(path) for name, path in prepared.items()}
    for name, queries in known.items():
        if not queries:
            raise VmrError(
                f"no annotated span of the {name} videos lies inside them: check that the times are seconds"
            )
    history, best = _fit(out, prepared, len(known["train"]), info, config, report)
    counts = {name: sum(map(len, rows.values())) for name, rows in groups.items()}
    used = {name: sum(queries) for name, queries in known.items()}
    return TrainResult(
        best=f"{out}/best",
        last=f"{out}/last",
        metrics=best,
        history=history,
        train_queries=used["train"],
        val_queries=used["val"],
        outside=sum(counts.values()) - sum(used.values()),
        without_features=len(given) + len(held_out) - sum(counts.values()),
    )


def split(
    groups: dict[str, list[Annotation]], fraction: float, seed: int
) -> tuple[dict[str, list[Annotation]], dict[str, list[Annotation]]]:
    """Hold out a share of the videos (at least one of two), the same ones for the same seed."""

    def draw(video_id: str) -> str:
        return hashlib.sha256(f"{seed}:{video_id}".encode()).hexdigest()

    order = sorted(groups, key=draw)
    held = set(order[: max(1, round(fraction * len(order)))] if len(order) > 1 else [])
    return (
        {k: v for k, v in groups.items() if k not in held},
        {k: v for k, v in groups.items() if k in held},
    )


def _by_video(rows: Iterable[Annotation], ids: dict[str, str]) -> dict[str, list[Annotation]]:
    groups: dict[str, list[Annotation]] = {}
    for row in rows:
        if row.video_id in ids:
            groups.setdefault(ids[row.video_id], []).append(row)
    return groups


def _identity(rows: list[Annotation]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest() if rows else ""


def _claim(out: str, config: Config, inputs: dict[str, str]) -> None:
    """Write OUT/run.json, or check that the run there is the same one."""
    filesys, path = filesystem(out)
    # How long and on how many machines to train may change between two calls of one run.
    settings = config.model_dump(mode="json", include={"model", "train"})
    for free in (
        "epochs",
        "max_minutes",
        "patience",
        "workers",
        "min_workers",
        "use_gpu",
        "cpus_per_worker",
    ):
        settings["train"].pop(free)
    wanted = {"inputs": inputs, **settings}
    try:
        with filesys.open_input_stream(f"{path}/run.json") as stream:
            found = json.loads(stream.read())
    except FileNotFoundError:
        filesys.create_dir(path, recursive=True)
        with filesys.open_output_stream(f"{path}/run.json") as stream:
            stream.write(json.dumps(wanted, indent=1).encode())
        return
    if found != wanted:
        differs = [k for k in wanted if found.get(k) != wanted[k]]
        raise VmrError(
            f"{out} holds a run with other {', '.join(differs)}: choose another --out, "
            "or delete it to start anew"
        )


def _prepare(
    out: str,
    store: FeatureStore,
    files: dict[str, tuple[str, ...]],
    groups: dict[str, list[Annotation]],
    text_name: str,
) -> str:
    """Write the training rows of `groups` once; a finished directory of the same content is reused."""
    import ray
    from ray.data import ActorPoolStrategy

    from vmr_ray.runtime import cluster_cpus

    items = [
        {
            "files": list(files[video_id]),
            "queries": [a.query for a in rows],
            "spans": [[list(span) for span in a.spans] for a in rows],
        }
        for video_id, rows in sorted(groups.items())
    ]
    # Not the addresses: `vmr features compact` moves chunks, but changes none.
    held = [{**item, "files": store.version(files[v])} for v, item in zip(sorted(groups), items, strict=True)]
    content = hashlib.sha256(json.dumps([sorted(groups), held, text_name]).encode()).hexdigest()
    filesys, path = filesystem(out)
    marker = f"{path}/_done-{content}"  # readers of Parquet pass over a leading underscore
    if filesys.get_file_info(marker).type == fs.FileType.File:
        return out
    if filesys.get_file_info(path).type == fs.FileType.Directory:
        filesys.delete_dir(path)
    workers = min(cluster_cpus(), len(items))
    ray.data.from_items(items, override_num_blocks=min(len(items), 64)).map_batches(
        _Prepare,
        batch_size=16,
        batch_format="pyarrow",
        fn_constructor_args=(store.root, text_name),
        compute=ActorPoolStrategy(size=workers),
        num_cpus=0.5,
    ).write_parquet(out)
    with filesys.open_output_stream(marker) as stream:
        stream.write(b"")
    return out


class _Prepare:
    """(chunk files, queries, spans) -> training rows."""

    def __init__(self, root: str, text_name: str):
        self.store = FeatureStore.open(root)
        self.text = text_encoder(text_name, threads=1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        made = []
        for row in batch.to_pylist():
            video = self.store.read(row["files"])
            # A span beyond the (readable part of the) video has no frames to learn from.
            inside = [within(spans, video.edges[0], video.edges[-1]) for spans in row["spans"]]
            keep = [i for i, spans in enumerate(inside) if spans]
            if keep:
                queries = [row["queries"][i] for i in keep]
                made.append(to_row(video, queries, self.text(queries), [inside[i] for i in keep]))
        return pa.Table.from_pylist(made, schema=ROW_SCHEMA)


def within(spans: list[list[float]], low: float, high: float) -> list[list[float]]:
    """The parts of spans that lie in `[low, high)`; one that loses more than half is left out."""
    clipped = [(max(s, low), min(e, high), e - s) for s, e in spans]
    return [[s, e] for s, e, length in clipped if e - s >= length / 2 > 0]


def _queries(prepared: str) -> list[int]:
    """How many queries each prepared video has."""
    filesys, path = filesystem(prepared)
    column = pq.ParquetDataset(path, filesystem=filesys).read(columns=["queries"])["queries"]
    return [len(queries) for queries in column.to_pylist()]


def _constants(prepared: str) -> dict[str, Any]:
    """The constant answers that fit the training spans best; the reports compare with them."""
    filesys, path = filesystem(prepared)
    rows = pq.ParquetDataset(path, filesystem=filesys).read(columns=["duration", "spans"])
    pairs = [
        (span[0], duration)
        for duration, spans in zip(rows["duration"].to_pylist(), rows["spans"].to_pylist(), strict=True)
        for span in spans
    ]
    return fit_constants([span for span, _ in pairs], [duration for _, duration in pairs])


# -- the trainer -------------------------------------------------------------------------------------


def _fit(
    out: str, prepared: dict[str, str], rows: int, info: CheckpointInfo, config: Config, report: Report | None
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Train; returns the rows of all validations and the row of the best checkpoint."""
    import ray
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if config.train.workers > rows:
        raise VmrError(
            f"{config.train.workers} workers cannot share {rows} training videos: use fewer workers"
        )
    progress = ray.remote(num_cpus=0)(_Progress).remote()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "info": info.model_dump(mode="json"),
            "rows": rows,
            "progress": progress,
            "newest": _newest(out),
        },
        torch_config=TorchConfig(backend="nccl" if config.train.use_gpu else "gloo"),
        datasets={
            "train": ray.data.read_parquet(prepared["train"], file_extensions=["parquet"], shuffle="files"),
            "val": ray.data.read_parquet(prepared["val"], file_extensions=["parquet"]),
        },
        # Every worker sees all validation rows and takes its share itself: none is dropped.
        dataset_config=DataConfig(datasets_to_split=["train"]),
        scaling_config=ScalingConfig(
            num_workers=(config.train.min_workers or config.train.workers, config.train.workers),
            use_gpu=config.train.use_gpu,
            resources_per_worker={"CPU": _claim_cpus(config.train)},
        ),
        run_config=RunConfig(
            name="run",
            storage_path=out,
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=config.train.metric),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    with _follow(progress, report):
        result = trainer.fit()
    filesys, path = filesystem(out)
    kept = sorted(result.best_checkpoints, key=lambda pair: pair[1][config.train.metric])
    assert result.checkpoint is not None
    for name, checkpoint in (("best", kept[-1][0]), ("last", result.checkpoint)):
        _publish(checkpoint, filesys, f"{path}/{name}")
    with result.checkpoint.as_directory() as directory:
        history: list[dict[str, float]] = json.loads((Path(directory) / "history.json").read_text())
    with filesys.open_output_stream(f"{path}/history.json") as stream:
        stream.write(json.dumps(history, indent=1).encode())
    return history, kept[-1][1]


def _claim_cpus(config: TrainConfig) -> float:
    """CPUs that a training process claims of Ray: never all there are, or none would read its data."""
    from vmr_ray.runtime import cluster_cpus

    return min(config.cpus_per_worker, max(0.25, (cluster_cpus() - 1) / config.workers))


def _newest(out: str) -> tuple[str, int] | None:
    """(URI, epoch) of the newest whole checkpoint in storage, whether or not Ray Train has heard of it.

    Ray notes a reported checkpoint a moment after it is stored; a kill in between would cost it.
    """
    filesys, path = filesystem(f"{out}/run")
    found = []
    for item in filesys.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        directory = f"{out}/run/{item.base_name}"
        if item.base_name.startswith("checkpoint_") and item.type == fs.FileType.Directory:
            try:
                info = load_info(directory)
                load_weights(directory, info)
                load_trainer(directory)
                found.append((directory, info.epoch))
            except Exception:  # half stored: not one to resume from
                continue
    return max(found, key=lambda pair: pair[1], default=None)


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


def train_loop(loop: dict[str, Any]) -> None:
    """What every training process runs."""
    import ray.train
    import ray.train.torch

    config = Config.model_validate(loop["config"])
    info = CheckpointInfo.model_validate(loop["info"])
    settings = config.train
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))

    torch.manual_seed(settings.seed)
    objective = Objective(info.network(), settings)
    per_worker = max(1, settings.batch_videos // world)
    steps = max(1, math.ceil(loop["rows"] // world / per_worker))
    epoch, spent, history = 0, 0.0, []
    resumed = _resume(loop["newest"], rank)
    trainer_state: dict[str, Tensor] = {}
    average = torch.optim.swa_utils.AveragedModel(objective.network, multi_avg_fn=_ema(settings.ema))
    if resumed:
        with resumed.as_directory() as directory:
            state = load_info(directory)
            trainer_state = load_trainer(directory)
            history = json.loads((Path(directory) / "history.json").read_text())
            average.module.load_state_dict(load_weights(directory, state))
        average.n_averaged.copy_(trainer_state["averaged"])
        objective.network.load_state_dict(_take(trainer_state, "network."))
        epoch, spent = state.epoch, float(trainer_state["seconds"])
    average.to(device)
    module = ray.train.torch.prepare_model(
        objective, parallel_strategy_kwargs={"find_unused_parameters": True} if world > 1 else None
    )
    optimizer = torch.optim.AdamW(_parameter_groups(objective, settings.weight_decay), lr=settings.lr)
    if resumed:
        restore_optimizer(optimizer, trainer_state)
    network = average.module
    assert isinstance(network, CrossInteraction)
    predictor = Predictor(network, info, str(device))
    train_rows, val_rows = (
        _Rows(ray.train.get_dataset_shard(name), info, settings.cache_gb, world) for name in ("train", "val")
    )
    plan = _Plan(settings, epoch, spent, world)
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()

    while plan.goes_on() and not out_of_patience(history, settings):
        plan.begin()
        rng = np.random.default_rng([settings.seed, plan.epoch, rank])
        torch.manual_seed(int(rng.integers(2**31)))
        module.train()
        totals: dict[str, float] = {}
        count = pairs = 0
        for examples in train_rows.batches(per_worker, seed=settings.seed + plan.epoch):
            batch = collate(_vary(examples, config, rng)).to(device)
            rate = _schedule(plan.progress(min(count, steps) / steps), settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * rate
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                terms = module(batch)
            terms["total"].backward()
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
            optimizer.step()
            average.update_parameters(objective.network)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.item()
            count += 1
            pairs += len(batch.video)
        plan.end()
        row = {f"loss/{name}": value / max(1, count) for name, value in totals.items()}
        row |= {"epoch": plan.epoch, "epochs": plan.expected(), "minutes": plan.now / 60}
        row |= {"train_s": plan.took, "pairs_per_s": world * pairs / plan.took}
        if plan.epoch % settings.evaluate_every == 0 or not plan.goes_on():
            row |= validate(predictor, val_rows.batches(16), rank, world, config.evaluate.nms)
            history.append(row)
            with tempfile.TemporaryDirectory() as directory:
                checkpoint = None
                if rank == 0:
                    saved = info.model_copy(update={"epoch": plan.epoch, "metrics": row})
                    state_now = {
                        f"network.{k}": v.clone().cpu() for k, v in objective.network.state_dict().items()
                    }
                    state_now |= optimizer_tensors(optimizer)
                    state_now |= {
                        "seconds": torch.tensor(plan.seconds()),
                        "averaged": average.n_averaged.cpu(),
                    }
                    save_checkpoint(directory, average.module.state_dict(), saved, state_now)
                    (Path(directory) / "history.json").write_text(json.dumps(history))
                    checkpoint = ray.train.Checkpoint.from_directory(directory)
                ray.train.report(row, checkpoint=checkpoint)
        if rank == 0:
            loop["progress"].add.remote(row)


def out_of_patience(history: Sequence[dict[str, float]], config: TrainConfig) -> bool:
    """Whether the last `patience` validations brought nothing better than one before them."""
    if config.patience is None or len(history) <= config.patience:
        return False
    values = [row[config.metric] for row in history]
    return max(values[-config.patience :]) <= max(values[: -config.patience])


def _ema(decay: float) -> Callable[..., None]:
    """Exponential moving average that trusts the first steps less, so that a short training has one too."""

    def update(averages: list[Tensor], parameters: list[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        torch._foreach_lerp_(averages, parameters, 1 - min(decay, (1 + steps) / (10 + steps)))

    return update


def _vary(examples: list[Example], config: Config, rng: np.random.Generator) -> list[Example]:
    """What one step sees of its videos."""
    settings = config.train
    examples = [crop(example, config.model.window, rng) for example in examples]
    if rng.random() < settings.compose:
        examples = compose(examples, rng)
    examples = [draw_queries(example, settings.queries_per_video, rng) for example in examples]
    for example in examples:
        example.tokens = [drop_tokens(t, settings.keep_tokens, _TOKENS, rng) for t in example.tokens]
    return examples


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, norms and scalars."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 1 %; `progress` is the share of the training done."""
    done = min(progress, 1.0)
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


class _Plan:
    """How far the training is: by epochs, or by the clock where `max_minutes` is nearer.

    The clock counts validations and earlier attempts too, and is that of rank 0: all processes must
    agree on the learning rate and on the end. Inside an epoch it is taken to run as it did in the last.
    """

    def __init__(self, config: TrainConfig, epoch: int, spent: float, world: int):
        self.epochs, self.world = config.epochs, world
        self.limit = 60 * config.max_minutes if config.max_minutes else math.inf
        self.started = time.monotonic() - spent
        self.epoch, self.now, self.took = epoch, spent, 0.0

    def seconds(self) -> float:
        """Of all attempts, so far."""
        return time.monotonic() - self.started

    def goes_on(self) -> bool:
        """Whether there is another epoch: at least one, and as long as at least half of it fits."""
        return self.epoch < self.epochs and (not self.epoch or self.now + self.took / 2 < self.limit)

    def begin(self) -> None:
        self.now = _gather(self.seconds(), self.world)[0]

    def end(self) -> None:
        before, self.now = self.now, _gather(self.seconds(), self.world)[0]
        self.epoch, self.took = self.epoch + 1, self.now - before

    def progress(self, share: float) -> float:
        """The share of the training that is done when `share` of the current epoch is."""
        return max((self.epoch + share) / self.epochs, (self.now + share * self.took) / self.limit)

    def expected(self) -> int:
        """How many epochs it will be, after the first one."""
        if not self.goes_on():
            return self.epoch
        return max(self.epoch + 1, round(min(self.epochs, self.epoch * self.limit / self.now)))


def _resume(newest: tuple[str, int] | None, rank: int) -> Any:
    """The checkpoint to go on from: Ray's own, or a newer one in storage, of which Ray is told."""
    import ray.train

    known = ray.train.get_checkpoint()
    if newest is None or (known and _epoch(known) >= newest[1]):
        return known
    filesys, path = filesystem(newest[0])
    found = ray.train.Checkpoint(path, filesystem=filesys)
    with found.as_directory() as directory, tempfile.TemporaryDirectory() as copy:
        shutil.copytree(directory, copy, dirs_exist_ok=True)
        ray.train.report(
            load_info(copy).metrics,
            checkpoint=ray.train.Checkpoint.from_directory(copy) if rank == 0 else None,
        )
    return found


def _epoch(checkpoint: Any) -> int:
    with checkpoint.as_directory() as directory:
        return load_info(directory).epoch


class _Rows:
    """A worker's training rows: streamed by Ray Data, and kept in memory if they fit.

    Small sets are then read once; a set larger than `cache_gb` is streamed anew every epoch.
    """

    def __init__(self, shard: Any, info: CheckpointInfo, cache_gb: float, world: int):
        self.shard, self.info, self.world = shard, info, world
        self.room = cache_gb * 2**30
        self.kept: list[Example] | None = None

    def batches(self, size: int, seed: int | None = None) -> Iterator[list[Example]]:
        """Batches of `size` videos, shuffled by `seed`, in order without one."""
        if self.kept is not None:
            order = (
                np.arange(len(self.kept))
                if seed is None
                else np.random.default_rng(seed).permutation(len(self.kept))
            )
            for at in range(0, len(order), size):
                yield [self.kept[i] for i in order[at : at + size]]
            return
        shuffle = {} if seed is None else {"local_shuffle_buffer_size": 256, "local_shuffle_seed": seed}
        kept: list[Example] = []
        used = 0
        for table in self.shard.iter_batches(batch_size=size, batch_format="pyarrow", **shuffle):
            examples = [from_row(row, self.info.frame_dim, self.info.token_dim) for row in table.to_pylist()]
            used += table.nbytes
            if used <= self.room:
                kept += examples
            else:
                kept.clear()
            yield examples
        # All or none: a process that went on streaming alone would wait for the others for ever.
        if all(_gather(used <= self.room, self.world)):
            self.kept = kept


def validate(
    predictor: Predictor, batches: Iterator[list[Example]], rank: int, world: int, nms: float
) -> dict[str, float]:
    """Moment metrics (percent) of this process's share of the rows, averaged over all processes."""
    predictions: list[np.ndarray] = []
    truths: list[np.ndarray] = []
    for examples in batches:
        # By name: the processes read the rows in no common order.
        examples = [e for e in examples if zlib.crc32(e.video_id.encode()) % world == rank]
        if examples:
            predictions += [np.asarray(spans)[:, :2] for spans in predictor.retrieve(examples, 5, nms)]
            truths += [np.asarray(spans) for e in examples for spans in e.spans]
    metrics = moment_metrics(predictions, truths) if truths else {}
    parts = [part for part in _gather((len(truths), metrics), world) if part[0]]
    total = sum(n for n, _ in parts)
    return {key: sum(n * m[key] for n, m in parts) / total for key in parts[0][1]}


def _gather(value: Any, world: int) -> list[Any]:
    """Every process's value, on every process."""
    if world == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values
