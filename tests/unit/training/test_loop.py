"""The training loop in this process, without Ray: epochs, checkpoints, resuming."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from tests.builders import example
from vmr_ray.config import Config, ModelConfig, TrainConfig
from vmr_ray.model.checkpoint import CheckpointInfo, load_network
from vmr_ray.model.presence import Presence
from vmr_ray.schema import VideoFeatures
from vmr_ray.training.batches import ROW_SCHEMA, to_row
from vmr_ray.training.loop import Trainer, validate
from vmr_ray.training.rows import CachedRows
from vmr_ray.training.trainer_state import TrainingState, load_state

CONFIG = Config(
    model=ModelConfig(dim=16, heads=2), train=TrainConfig(epochs=3, lr=0.01, batch_videos=2, seed=5)
)
INFO = CheckpointInfo(
    model=CONFIG.model, frame_encoder="f", frame_dim=3, sampling="fps=1", text_encoder="minilm", token_dim=5
)


class Shard:
    """The part of a Ray dataset's shard that is read: a table in batches."""

    def __init__(self) -> None:
        examples = [example(frames, queries=2) for frames in (4, 5, 6, 7, 8)]
        rows = [
            to_row(
                VideoFeatures(e.video_id, "", e.duration, e.edges[:-1], e.edges, e.features),
                e.queries,
                e.tokens,
                e.spans,
            )
            for e in examples
        ]
        self.table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
        self.reads = 0

    def iter_batches(self, batch_size: int, batch_format: str, **shuffle: int):
        assert batch_format == "pyarrow"
        self.reads += 1
        for at in range(0, len(self.table), batch_size):
            yield self.table.slice(at, batch_size)


def trainer(state: TrainingState | None = None) -> Trainer:
    device = torch.device("cpu")
    return Trainer(CONFIG, INFO, rank=0, world=1, device=device, prepare=lambda module: module, state=state)


def rows(shard: Shard | None = None) -> CachedRows:
    return CachedRows(shard or Shard(), INFO, cache_gb=1, rows=5, row_bytes=1000, world=1)


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path):
    whole, whole_rows = trainer(), rows()
    history = [whole.train_epoch(whole_rows, 2, steps=3)]
    whole.save(str(tmp_path), history)
    state = load_state(tmp_path)
    assert (state.info.epoch, state.history) == (1, history)
    resumed, resumed_rows = trainer(state), rows()
    for one in ((whole, whole_rows), (resumed, resumed_rows)):
        history.append(one[0].train_epoch(one[1], 2, steps=3))
    assert history[1]["epoch"] == history[2]["epoch"] == 2
    assert history[1]["loss/total"] == history[2]["loss/total"] != history[0]["loss/total"]
    for name, weight in whole.objective.network.state_dict().items():
        assert torch.equal(weight, resumed.objective.network.state_dict()[name])
    for name, weight in whole.average.module.state_dict().items():
        assert torch.equal(weight, resumed.average.module.state_dict()[name])


def test_no_batch_depends_on_the_order_of_reading():
    other = Shard()
    other.table = other.table.take([3, 0, 4, 2, 1])
    ordered, reordered = rows(), rows(other)
    for seed in range(2):
        names = [[[e.video_id for e in batch] for batch in r.batches(2, seed)] for r in (ordered, reordered)]
        assert names[0] == names[1]


def test_the_checkpoint_has_the_averaged_weights_and_its_metrics(tmp_path: Path):
    one = trainer()
    row = one.train_epoch(rows(), 2, steps=3)
    row |= validate(one.predictor, rows().batches(2), 0, 1, nms=0.5)[0]
    presence = Presence(slope=1.5, intercept=-0.5, min_probability=0.25)
    one.save(str(tmp_path), [row], presence)
    network, info = load_network(tmp_path)
    assert info.epoch == 1 and info.metrics == row and 0 <= row["miou"] <= 100
    assert info.presence == presence
    trained = one.objective.network.state_dict()
    assert any(not torch.equal(weight, trained[name]) for name, weight in network.state_dict().items())
    for name, weight in one.average.module.state_dict().items():
        assert torch.equal(weight, network.state_dict()[name])


def test_the_metrics_do_not_depend_on_the_batches():
    predictor = trainer().predictor
    by_two, at_once = (validate(predictor, rows().batches(size), 0, 1, nms=0.5)[0] for size in (2, 5))
    assert by_two == pytest.approx(at_once) and {"miou", "r1_at_0.5"} <= by_two.keys()


def test_a_small_set_is_read_once():
    shard = Shard()
    cached = rows(shard)
    batches = [[e.video_id for e in batch] for batch in cached.batches(2)]
    assert batches == [["v4", "v5"], ["v6", "v7"], ["v8"]]
    shuffled = [[e.video_id for e in batch] for batch in cached.batches(2, seed=1)]
    assert shuffled != batches
    assert sorted(chain.from_iterable(shuffled)) == ["v4", "v5", "v6", "v7", "v8"]
    assert shuffled == [[e.video_id for e in batch] for batch in cached.batches(2, seed=1)]
    assert shard.reads == 1
