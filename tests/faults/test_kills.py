"""Killed in the middle with SIGKILL, run again: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vmr_ray.checkpoint import load_network
from vmr_ray.embed import embed
from vmr_ray.features import FeatureStore


def run_and_kill(arguments: list[str], reached: Callable[[], bool], tmp_path: Path) -> None:
    """Start `vmr ARGUMENTS` on a Ray of its own; SIGKILL the whole session once `reached` holds."""
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "vmr", *arguments],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 240
            while not reached():
                log.seek(0)
                assert process.poll() is None, "it ended before it could be killed: " + log.read()
                assert time.monotonic() < deadline, log.read()
                time.sleep(0.05)
        finally:
            # The driver and every process that it started, workers and raylet alike.
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def test_embed_goes_on_after_a_kill(features: Path, world, tmp_path: Path):
    out = tmp_path / "features"

    def written() -> list[Path]:
        return sorted(out.rglob("*.parquet"))

    run_and_kill(["embed", str(world.videos), "--out", str(out)], lambda: len(written()) >= 2, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in written()}
    store = FeatureStore.open(str(out))
    done = len(store.video_ids())
    assert 2 <= done < 9
    summary = embed([world.videos], out)
    assert (summary.skipped, summary.embedded) == (done, 9 - done)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    undisturbed = {p.name: p.read_bytes() for p in features.rglob("*.parquet")}
    assert {p.name: p.read_bytes() for p in written()} == undisturbed


def test_training_resumes_after_a_kill(features: Path, world, tmp_path: Path):
    run = tmp_path / "run"
    arguments = ["train", str(features), "-a", str(world.train), "-o", str(run), "--epochs", "12", "--json"]
    for value in ("model.dim=32", "model.heads=2", "train.cpus_per_worker=0.5"):
        arguments += ["--set", value]

    def saved() -> list[Path]:
        return sorted(run.glob("run/checkpoint_*/checkpoint.json"))

    run_and_kill(arguments, lambda: len(saved()) >= 2, tmp_path)
    newest = max(saved(), key=lambda path: json.loads(path.read_text())["epoch"])
    before = json.loads((newest.parent / "history.json").read_text())
    assert len(before) >= 2
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [Path(sys.executable).parent / "vmr", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    history = json.loads((run / "history.json").read_text())
    assert [row["epoch"] for row in history] == list(range(1, 13))
    # The rows carry the killed run's times: those epochs were not trained again.
    assert history[: len(before)] == before
    network, info = load_network(run / "last")
    assert info.epoch == 12
    assert all(np.isfinite(p.detach().numpy()).all() for p in network.parameters())
