"""Tracking into real event files and a real MLflow database, read back by their own readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmr_ray.config import Config, TrainConfig, load_config
from vmr_ray.errors import VmrError
from vmr_ray.training.tracking import require, tracked


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def config(*names: str) -> Config:
    return Config(train=TrainConfig(track=names, lr=0.003))


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "loss/total": 10.0 / epoch, "miou": 5.0 * epoch}


def follow(out: Path, settings: Config, epochs: list[int]) -> list[int]:
    seen: list[dict[str, float]] = []
    with tracked(str(out), settings, seen.append) as report:
        for epoch in epochs:
            report(row(epoch))
    return [int(r["epoch"]) for r in seen]


# Two calls, the second one resumed from epoch 2; inside it, epoch 3 comes again after a lost worker.
CALLS = ([1, 2, 3], [3, 4, 3, 4, 5])


def test_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in CALLS:
        assert follow(tmp_path, config("tensorboard"), epochs) == epochs
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss/total", "miou"}
    scalars = events.Scalars("loss/total")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5]
    assert [event.value for event in scalars] == pytest.approx([10 / e for e in range(1, 6)])
    assert len(events.Tensors("config/text_summary")) == 1


def test_mlflow(tmp_path: Path):
    from mlflow.tracking import MlflowClient

    for epochs in CALLS:
        assert follow(tmp_path, config("mlflow"), epochs) == epochs
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("vmr-ray")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(m.step, m.value) for m in history] == [(e, 10 / e) for e in range(1, 6)]
    assert run.data.params["train.lr"] == "0.003" and run.data.params["model.dim"] == "256"
    assert run.info.status == "FINISHED"

    with pytest.raises(ValueError), tracked(str(tmp_path), config("mlflow")):
        raise ValueError
    assert client.get_run(run.info.run_id).info.status == "FAILED"


def test_a_failing_tracker_does_not_end_the_training(tmp_path: Path, monkeypatch, caplog):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert follow(tmp_path, config("tensorboard"), [1, 2]) == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard is left out from now on: no space left"
    ]


def test_without_trackers_rows_are_passed_on(tmp_path: Path):
    assert follow(tmp_path, config(), [1, 2]) == [1, 2]
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    import vmr_ray.training.tracking

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(vmr_ray.training.tracking, "import_module", missing)
    with pytest.raises(VmrError, match=r"needs the package mlflow: pip install 'vmr-ray\[tracking\]'"):
        require(["mlflow"])


def test_object_storage_needs_a_server():
    with pytest.raises(VmrError, match="MLFLOW_TRACKING_URI"), tracked("s3://bucket/run", config("mlflow")):
        pass


def test_an_unknown_tracker_is_refused():
    with pytest.raises(VmrError, match=r"train\.track.*tensorboard"):
        load_config(None, ["train.track=[comet]"])
    assert load_config(None, ["train.track=[mlflow]"]).train.track == ("mlflow",)
