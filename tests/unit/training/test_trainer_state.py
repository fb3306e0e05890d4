"""A training resumes exactly where its checkpoint was written, and never from a damaged one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.builders import checkpoint_info
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import CheckpointInfo, load_network
from vmr_ray.model.checkpoint import save_checkpoint as save
from vmr_ray.training.resume import newest_whole
from vmr_ray.training.trainer_state import (
    load_state,
    load_trainer,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)

HISTORY = [{"epoch": 1.0, "miou": 10.0}, {"epoch": 2.0, "miou": 20.0}]
FILES = ("checkpoint.json", "model.safetensors", "trainer.safetensors", "history.json")


@pytest.fixture
def info() -> CheckpointInfo:
    return checkpoint_info()


@pytest.fixture
def run(info: CheckpointInfo, tmp_path: Path) -> Path:
    """A run with the checkpoints of epochs 1 and 2."""
    network = info.network()
    average = torch.optim.swa_utils.AveragedModel(network)
    optimizer = torch.optim.AdamW(network.parameters())
    average.update_parameters(network)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    for epoch in (1, 2):
        at_epoch = info.model_copy(update={"epoch": epoch})
        directory = str(tmp_path / "run" / f"checkpoint_{epoch}")
        save_state(directory, at_epoch, network, average, optimizer, (9.0, 4.0, 1.0), HISTORY[:epoch])
    return tmp_path


def test_what_was_saved_is_loaded(info: CheckpointInfo, run: Path):
    state = load_state(run / "run" / "checkpoint_2")
    assert (state.info.epoch, state.history, state.clock) == (2, HISTORY, [9, 4, 1])
    assert state.trainer["averaged"] == 1
    name = next(name for name, _ in info.network().named_parameters())
    assert state.weights.keys() == state.averaged_weights.keys()
    torch.testing.assert_close(state.weights[name], state.averaged_weights[name] + 1)
    info.network().load_state_dict(state.weights)


@pytest.mark.parametrize("content", [None, b"", b'[{"epoch": 1', b"{}", b"[1]"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_sentence_with_a_fix(run: Path, name: str, content: bytes | None):
    path = run / "run" / "checkpoint_2" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VmrError) as caught:
        load_state(path.parent)
    message = str(caught.value)
    assert str(path.parent) in message and "\n" not in message
    # The training resumes from the one before.
    assert newest_whole(str(run)) == "checkpoint_1"


@pytest.mark.parametrize("name", ["trainer.safetensors", "history.json"])
def test_the_fix_of_a_damaged_state_is_named(run: Path, name: str):
    (run / "run" / "checkpoint_2" / name).write_bytes(b"")
    with pytest.raises(VmrError, match=f"{name}.*delete this checkpoint's directory"):
        load_state(run / "run" / "checkpoint_2")


def test_the_newest_whole_checkpoint_is_the_one_to_resume_from(run: Path):
    assert newest_whole(str(run)) == "checkpoint_2"
    shutil.copytree(run / "run" / "checkpoint_2", run / "run" / "checkpoint_3")  # the same epoch
    assert newest_whole(str(run)) == "checkpoint_3"
    assert newest_whole(str(run), preferred="checkpoint_2") == "checkpoint_2"
    assert newest_whole(str(run), preferred="checkpoint_1") == "checkpoint_3"


def test_a_new_run_has_no_checkpoint(tmp_path: Path):
    assert newest_whole(str(tmp_path)) == ""


def test_the_optimizer_resumes_where_it_stopped(info: CheckpointInfo, tmp_path: Path):
    def step(network, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        mask = torch.ones(2, 5, dtype=torch.bool)
        network.project_video(network.encode_video(torch.randn(2, 5, 8), mask), mask).sum().backward()
        optimizer.step()

    network = info.network().eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    step(network, optimizer, 0)
    save(tmp_path, network.state_dict(), info, optimizer_tensors(optimizer))
    other, _ = load_network(tmp_path)
    resumed = torch.optim.AdamW(other.parameters(), lr=0.01)
    restore_optimizer(resumed, load_trainer(tmp_path))
    step(network, optimizer, 1)
    step(other, resumed, 1)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
