"""What every training process runs: batches through the network, validations, checkpoints."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from pyarrow import fs
from torch import Tensor, nn

from vmr_ray.config import Config, TrainConfig
from vmr_ray.evaluation.metrics import moment_metrics
from vmr_ray.model.checkpoint import (
    CheckpointInfo,
    load_info,
    load_weights,
    save_checkpoint,
)
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.model.inputs import Example
from vmr_ray.model.predictor import Predictor
from vmr_ray.storage import filesystem, read_json, write_json
from vmr_ray.training.augment import compose, draw_queries, drop_tokens
from vmr_ray.training.batches import collate, crop, from_row
from vmr_ray.training.objective import Objective
from vmr_ray.training.trainer_state import load_trainer, optimizer_tensors, restore_optimizer

_DELETE = "delete this checkpoint's directory; the training then goes on from the one before"
_TOKENS = 16  # of a query in training: longer rows cost time and teach little
_SHUFFLED = 2**26  # bytes of streamed rows that are shuffled among each other


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
    # The same batch whatever the number of processes is, or as near as whole videos allow.
    per_worker = max(1, round(settings.batch_videos / world))
    steps = max(1, math.ceil(loop["rows"] // world / per_worker))
    plan, history = Plan(settings, world), []
    resumed = _resume(loop["out"], rank, world)
    trainer_state: dict[str, Tensor] = {}
    average = torch.optim.swa_utils.AveragedModel(objective.network, multi_avg_fn=_ema(settings.ema))
    if resumed:
        with resumed.as_directory() as directory:
            state = load_info(directory)
            trainer_state = load_trainer(directory)
            history = read_json(f"{directory}/history.json", _DELETE)
            average.module.load_state_dict(load_weights(directory, state))
        average.n_averaged.copy_(trainer_state["averaged"])
        objective.network.load_state_dict(_take(trainer_state, "network."))
        plan = Plan(settings, world, state.epoch, trainer_state["clock"].tolist())
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
        Rows(ray.train.get_dataset_shard(name), info, settings.cache_gb, loop["row_bytes"], world)
        for name in ("train", "val")
    )
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()

    while plan.goes_on() and not out_of_patience(history, settings):
        plan.begin()
        rng = np.random.default_rng([settings.seed, plan.epoch, rank])
        torch.manual_seed(int(rng.integers(2**31)))
        module.train()
        totals: dict[str, float] = {}
        count = pairs = 0
        for examples in train_rows.batches(per_worker, seed=settings.seed + plan.epoch):
            done = plan.progress(min(count, steps) / steps)
            if count and done == 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * schedule(done, settings.warmup)
            batch = collate(_vary(examples, config, rng)).to(device)
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
        row = _mean({f"loss/{name}": value / count for name, value in totals.items()}, world)
        row |= {"epoch": plan.epoch, "epochs": plan.expected(), "minutes": plan.now / 60}
        row |= {"train_s": plan.took, "pairs_per_s": world * pairs / plan.took}
        if plan.due or not plan.goes_on():
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
                        "clock": torch.tensor(plan.clock(), dtype=torch.float64),
                        "averaged": average.n_averaged.cpu(),
                    }
                    save_checkpoint(directory, average.module.state_dict(), saved, state_now)
                    write_json(f"{directory}/history.json", history)
                    checkpoint = ray.train.Checkpoint.from_directory(directory)
                ray.train.report(row, checkpoint=checkpoint)
            plan.validated()
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


def schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 1 %; `progress` is the share of the training done."""
    done = min(progress, 1.0)
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


class Plan:
    """How far the training is: by epochs, or by the clock where `max_minutes` is nearer.

    The clock counts validations and earlier attempts too, and is that of rank 0: all processes must
    agree on the learning rate and on the end. The last epoch ends where a validation, as long as the
    one before, still fits the limit.
    """

    def __init__(self, config: TrainConfig, world: int, epoch: int = 0, clock: Sequence[float] = (0, 0, 0)):
        self.epochs, self.every, self.world = config.epochs, config.evaluate_every, world
        self.limit = 60 * config.max_minutes if config.max_minutes else math.inf
        self.epoch = epoch
        self.now, self.took, self.pause = clock  # seconds: so far, of an epoch, of a validation
        self.due = False  # whether a validation is to come before the next epoch
        self.over = False  # whether the time is up
        self.started = time.monotonic() - self.now

    def clock(self) -> tuple[float, float, float]:
        """What a later attempt goes on with."""
        seconds = time.monotonic() - self.started
        return seconds, self.took, self.pause or seconds - self.now

    def _tick(self) -> None:
        self.now = _gather(time.monotonic() - self.started, self.world)[0]

    def goes_on(self) -> bool:
        """Whether there is another epoch: at least one, and then as long as a tenth of one fits."""
        if self.over:
            return False
        if not self.epoch:
            return True
        begins = self.now + self.due * self.pause
        return self.epoch < self.epochs and begins + self.took / 10 < self.limit - self.pause

    def begin(self) -> None:
        self._tick()
        self.began = self.now

    def end(self) -> None:
        self._tick()
        self.epoch, self.took = self.epoch + 1, self.now - self.began
        self.due = self.epoch % self.every == 0

    def validated(self) -> None:
        before = self.now
        self._tick()
        self.pause, self.due = self.now - before, False

    def progress(self, share: float) -> float:
        """The share of the training that is done when `share` of the current epoch is; 1 is the end."""
        done = (self.epoch + share) / self.epochs
        if self.limit == math.inf:
            return done
        self._tick()
        elapsed = min(1.0, self.now / max(1e-9, self.limit - self.pause))
        self.over = elapsed == 1
        return max(done, elapsed)

    def expected(self) -> int:
        """How many epochs it will be, after the first one."""
        if not self.goes_on():
            return self.epoch
        return max(self.epoch + 1, round(min(self.epochs, self.epoch * self.limit / self.now)))


def _resume(out: str, rank: int, world: int) -> Any:
    """The checkpoint to go on from: Ray's own, or a newer one in storage, of which Ray is told.

    Ray notes a reported checkpoint a moment after it is stored; a kill in between would cost it.
    """
    import ray.train

    known = ray.train.get_checkpoint()
    newest = _gather(_newest(out) if rank == 0 else None, world)[0]
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


def _newest(out: str) -> tuple[str, int] | None:
    """(URI, epoch) of the newest whole checkpoint in storage, whether or not Ray Train has heard of it."""
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


def _sorted(examples: Iterable[Example]) -> list[Example]:
    """By their video: what is drawn for each then depends on the seed, and not on who was read first."""
    return sorted(examples, key=lambda example: example.video_id)


class Rows:
    """A worker's training rows: streamed by Ray Data, and kept in memory if they fit.

    Small sets are then read once; a set larger than `cache_gb` is streamed anew every epoch, its files
    in another order, and shuffled within as many rows of about `row_bytes` as a fixed memory holds.
    """

    def __init__(self, shard: Any, info: CheckpointInfo, cache_gb: float, row_bytes: int, world: int):
        self.shard, self.info, self.world = shard, info, world
        self.room = cache_gb * 2**30
        self.shuffled = _SHUFFLED // max(1, row_bytes)
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
                yield _sorted(self.kept[i] for i in order[at : at + size])
            return
        shuffle = (
            {}
            if seed is None
            else {"local_shuffle_buffer_size": max(size, self.shuffled), "local_shuffle_seed": seed}
        )
        kept: list[Example] = []
        used = 0
        for table in self.shard.iter_batches(batch_size=size, batch_format="pyarrow", **shuffle):
            examples = [from_row(row, self.info.frame_dim, self.info.token_dim) for row in table.to_pylist()]
            used += table.nbytes
            if used <= self.room:
                kept += examples
            else:
                kept.clear()
            yield _sorted(examples)
        # All or none: a process that went on streaming alone would wait for the others for ever.
        if all(_gather(used <= self.room, self.world)):
            self.kept = _sorted(kept)


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


def _mean(row: dict[str, float], world: int) -> dict[str, float]:
    """The mean of what all processes say, by name, over those that say it."""
    rows = _gather(row, world)
    names = dict.fromkeys(name for each in rows for name in each)
    return {name: float(np.mean([each[name] for each in rows if name in each])) for name in names}


def _gather(value: Any, world: int) -> list[Any]:
    """Every process's value, on every process."""
    if world == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values
