"""The training loop that runs in every training process: epochs, validations, checkpoints."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vmr_ray.config import Config
from vmr_ray.model.checkpoint import CheckpointInfo
from vmr_ray.model.inputs import Example
from vmr_ray.model.loader import predictor_of
from vmr_ray.model.presence import Presence
from vmr_ray.training.augment import compose, draw_queries, drop_tokens
from vmr_ray.training.batches import collate, crop
from vmr_ray.training.objective import objective_of
from vmr_ray.training.processes import mean_of_processes
from vmr_ray.training.resume import find_checkpoint
from vmr_ray.training.rows import CachedRows
from vmr_ray.training.schedule import TrainingClock, lr_factor, out_of_patience
from vmr_ray.training.stretches import compose_stretches, stretches_in
from vmr_ray.training.trainer_state import TrainingState, load_state, restore_optimizer, save_state
from vmr_ray.training.validation import validate

_MAX_TOKENS = 16  # of a query in training: longer rows cost time and teach little
_VALIDATION_BATCH = 16  # videos
# Without annotations: steps of a training at least, and videos composed for one.
_COMPOSED_STEPS, _COMPOSED_VIDEOS = 1500, 24


def train_loop(job: dict[str, Any]) -> None:
    """Train until the last epoch, the limit of time, or the end of patience.

    Args:
        job: `config` and `info` (the checkpoint's) as JSON, `rows` and `val_rows` (videos), `row_bytes` (of a
            training video), `out` (the run's directory), `progress` (an actor that takes the metrics of every
            epoch).
    """
    import ray.train
    import ray.train.torch

    # This process.
    config = Config.model_validate(job["config"])
    info = CheckpointInfo.model_validate(job["info"])
    settings = config.train
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))

    # The network, from the last checkpoint if there is one.
    checkpoint, state = find_checkpoint(job["out"], rank, world), None
    if checkpoint:
        with checkpoint.as_directory() as directory:
            state = load_state(directory)

    def prepare(module: nn.Module) -> nn.Module:
        options = {"find_unused_parameters": True} if world > 1 else None
        prepared: nn.Module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=options)
        return prepared

    trainer = Trainer(config, info, rank, world, device, prepare, state)
    history = state.history if state else []
    clock = trainer.clock

    # Its rows. The batch is the same whatever the number of processes, or as near as whole videos allow.
    train_rows, val_rows = (
        CachedRows(ray.train.get_dataset_shard(name), info, settings.cache_gb, count, job["row_bytes"], world)
        for name, count in (("train", math.ceil(job["rows"] / world)), ("val", job["val_rows"]))
    )
    batch_videos = max(1, round(settings.batch_videos / world))
    steps = max(1, math.ceil(job["rows"] // world / batch_videos))
    # A video without annotations teaches with every new composition, so few videos are gone through often.
    passes = max(1, math.ceil(_COMPOSED_STEPS / settings.epochs / steps)) if info.similarity else 1

    while clock.has_next_epoch() and not out_of_patience(history, settings):
        # One epoch.
        row = trainer.train_epoch(train_rows, batch_videos, steps, passes)

        # Validation and checkpoint.
        if clock.validation_due or not clock.has_next_epoch():
            batches = val_rows.batches(_VALIDATION_BATCH)
            metrics, presence = validate(trainer.predictor, batches, rank, world, config.evaluate.nms)
            row |= metrics
            history.append(row)
            with tempfile.TemporaryDirectory() as directory:
                saved = None
                if rank == 0:
                    trainer.save(directory, history, presence)
                    saved = ray.train.Checkpoint.from_directory(directory)
                ray.train.report(row, checkpoint=saved)  # a barrier: every process must call it
            clock.end_validation()

        if rank == 0:
            job["progress"].add.remote(row)


class Trainer:
    """The network in one training process, with its averaged weights, optimizer and clock. Knows no Ray.

    Args:
        prepare: moves a module to the device and wraps it in DDP if there are several processes.
        state: of the checkpoint that the training resumes from.
    """

    def __init__(
        self,
        config: Config,
        info: CheckpointInfo,
        rank: int,
        world: int,
        device: torch.device,
        prepare: Callable[[nn.Module], nn.Module],
        state: TrainingState | None = None,
    ) -> None:
        self.config, self.info, self.rank, self.world, self.device = config, info, rank, world, device
        settings = config.train

        # Weights: those that are trained, and their average, which is validated and saved.
        torch.manual_seed(settings.seed)
        self.network = info.network()
        self.objective = objective_of(self.network, settings)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=moving_average(settings.ema)
        )
        if state:
            self.average.module.load_state_dict(state.averaged_weights)
            self.average.n_averaged.copy_(state.trainer["averaged"])
            self.network.load_state_dict(state.weights)
        self.average.to(device)
        self.module = prepare(self.objective)

        # Optimizer and clock.
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.objective, settings.weight_decay), lr=settings.lr
        )
        self.clock = TrainingClock(settings, world)
        if state:
            restore_optimizer(self.optimizer, state.trainer)
            self.clock = TrainingClock(settings, world, state.info.epoch, state.clock)

        average: Any = self.average.module  # of the network's own class
        self.predictor = predictor_of(average, info, str(device))
        self.autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()

    def train_epoch(
        self, rows: CachedRows, batch_videos: int, steps: int, passes: int = 1
    ) -> dict[str, float]:
        """`passes` over this process's rows, of about `steps` steps each; ends early when the time is up.

        Returns:
            The mean losses of all processes, and how far and how fast the training is.
        """
        settings, clock = self.config.train, self.clock
        clock.begin_epoch()
        rng = np.random.default_rng([settings.seed, clock.epoch, self.rank])
        torch.manual_seed(int(rng.integers(2**31)))
        self.module.train()
        totals: dict[str, float] = {}
        step = pairs = 0
        seeds = [settings.seed + passes * clock.epoch + i for i in range(passes)]
        for examples in chain.from_iterable(rows.batches(batch_videos, seed) for seed in seeds):
            progress = clock.progress(min(step, passes * steps) / (passes * steps))
            if step and progress == 1:
                break
            terms, queries = self._step(self._augmented(examples, rng), progress)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.item()
            step += 1
            pairs += queries
        clock.end_epoch()
        losses = {f"loss/{name}": total / step for name, total in totals.items()}
        return {
            **mean_of_processes(losses, self.world),
            "epoch": clock.epoch,
            "epochs": clock.expected_epochs(),
            "minutes": clock.elapsed / 60,
            "train_s": clock.epoch_s,
            "pairs_per_s": self.world * pairs / clock.epoch_s,
        }

    def _augmented(self, examples: list[Example], rng: np.random.Generator) -> list[Example]:
        if self.info.similarity:
            stretches = [part for example in examples for part in stretches_in(example)]
            return compose_stretches(stretches, max(1, round(_COMPOSED_VIDEOS / self.world)), rng)
        return augmented(examples, self.config, rng)

    def _step(self, examples: list[Example], progress: float) -> tuple[dict[str, Tensor], int]:
        """One step on a batch; returns its losses and its number of queries."""
        settings = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(progress, settings.warmup)
        batch = collate(examples).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            terms: dict[str, Tensor] = self.module(batch)
        terms["total"].backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        return terms, len(batch.video)

    def save(self, directory: str, history: list[dict[str, float]], presence: Presence | None = None) -> None:
        """Write a checkpoint; the last row of `history` is its metrics, `presence` its calibration."""
        measured = {"epoch": self.clock.epoch, "metrics": history[-1], "presence": presence}
        info = self.info.model_copy(update=measured)
        network = self.network
        clock = self.clock.to_save()
        save_state(directory, info, network, self.average, self.optimizer, clock, history)


def moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average with less decay in the first steps, so that it suits short trainings too."""

    def update(averages: list[Tensor], parameters: list[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        torch._foreach_lerp_(averages, parameters, 1 - min(decay, (1 + steps) / (10 + steps)))

    return update


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, norms and scalars."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def augmented(examples: list[Example], config: Config, rng: np.random.Generator) -> list[Example]:
    """Crop long videos, sometimes compose new ones, draw queries and tokens."""
    settings = config.train
    examples = [crop(example, config.model.window, rng) for example in examples]
    if rng.random() < settings.compose:
        examples = compose(examples, rng)
    examples = [draw_queries(example, settings.queries_per_video, rng) for example in examples]
    for example in examples:
        example.tokens = [drop_tokens(t, settings.keep_tokens, _MAX_TOKENS, rng) for t in example.tokens]
    return examples
