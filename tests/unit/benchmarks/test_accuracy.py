from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import accuracy
from benchmarks.common.output import WIDTH
from vmr_ray.config import Config, ModelConfig, load_config
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import CheckpointInfo, save_checkpoint
from vmr_ray.model.cross_interaction import CrossInteraction


def test_every_row_of_the_ablation_is_another_training() -> None:
    configs = {row: load_config(None, list(changes)) for row, changes in accuracy.VARIANTS.items()}
    assert configs.pop("defaults") == Config()
    assert len({config.model_dump_json() for config in configs.values()} | {Config().model_dump_json()}) == (
        len(configs) + 1
    )
    for config in configs.values():
        assert sum(p.numel() for p in CrossInteraction(config.model, 16, 12).parameters())


def test_epochs_are_the_budget_unless_minutes_are_given() -> None:
    by_epochs = load_config(None, accuracy.budget_settings(12, None)).train
    assert (by_epochs.epochs, by_epochs.max_minutes, by_epochs.evaluate_every) == (12, None, 3)
    assert load_config(None, accuracy.budget_settings(1, None)).train.evaluate_every == 1
    by_clock = load_config(None, accuracy.budget_settings(12, 2.5)).train
    assert by_clock.max_minutes == 2.5
    assert by_clock.epochs > 1000


def test_the_command_has_every_option_written_out() -> None:
    line = accuracy.command_line(Path("my data"), 12, None, 2, ["full"], ["train.seed=1"])
    options = "--data 'my data' --epochs 12 --workers 2 --only full --set train.seed=1"
    assert line == f"python -m benchmarks.accuracy {options}"
    assert accuracy.command_line(None, 12, 40, 1, None, None).endswith("accuracy --minutes 40 --workers 1")


def test_speed_is_measured_on_a_checkpoint(tmp_path: Path) -> None:
    info = CheckpointInfo(
        model=ModelConfig(dim=32, fusion_dim=16, heads=2),
        frame_encoder="f",
        frame_dim=16,
        sampling="fps=1",
        text_encoder="minilm",
        token_dim=12,
    )
    save_checkpoint(tmp_path, info.network().state_dict(), info)
    figures = accuracy.speed(tmp_path, frames=40, queries=4)
    assert figures["batch_ratio"] == pytest.approx(figures["one_query_ms"] / figures["batch_of_32_query_ms"])


def test_a_finished_row_is_not_trained_again_with_other_settings(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "history.json").write_text("[]")
    (tmp_path / "full.settings.json").write_text(json.dumps(["train.epochs=3"]))
    data = accuracy.Data(tmp_path / "features", tmp_path / "train.jsonl", tmp_path / "val.jsonl")
    with pytest.raises(VmrError, match="full was trained with other settings: name another --work"):
        accuracy.train_row("full", ["train.epochs=4"], data, tmp_path)


def test_videos_of_the_two_parts_keep_apart(tmp_path: Path) -> None:
    row = {"video": "videos/a.mp4", "query": "a dog", "start": 0, "end": 2}
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "moments.jsonl").write_text(json.dumps(row) + "\n\n")
        (line,) = accuracy.read_annotations(tmp_path, part).splitlines()
        assert json.loads(line) == {**row, "video": f"{part}/videos/a.mp4"}
    with pytest.raises(
        VmrError, match="other/moments.jsonl does not exist: --data names a folder with train/"
    ):
        accuracy.read_annotations(tmp_path, "other")


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["full", *accuracy.VARIANTS]
    figures = {f"{row}.{name}": 99.9 for row in [*rows, *accuracy.BASELINES] for name in accuracy.METRICS}
    for row in rows:
        extra = {"parameters": 2_340_000, "pairs_per_s": 1234, "minutes": 123.5, "epochs": 1000}
        figures |= {f"{row}.{name}": value for name, value in extra.items()}
    figures |= {"speed.one_query_ms": 12.3, "speed.batch_of_32_query_ms": 10.1}
    accuracy.show(rows, figures)
    printed = capsys.readouterr().out.splitlines()
    for row in rows:
        (line,) = (line for line in printed if line.split()[:1] == [row])
        assert len(line) <= WIDTH
        assert line.split()[1:] == ["99.9"] * 4 + ["2.34M", "1234", "123.5", "1000"]
    for name in accuracy.BASELINES.values():
        (line,) = (line for line in printed if line.startswith(name))
        assert line.removeprefix(name).split() == ["99.9"] * 4
