"""Killed in the middle with SIGKILL and run again: nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.processes import descendants, kill_tree
from vmr_ray.config import EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_network


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
            kill_tree(process.pid)
            process.wait()


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


@pytest.mark.parametrize(
    ("config", "stages"),
    [(EmbedConfig(), ["DecodeEncodeWrite"]), (EmbedConfig(encode_workers=1), ["Decode", "Encode", "Write"])],
)
def test_a_killed_worker_costs_nothing(cluster, features, world, tmp_path: Path, config, stages):
    """A worker of each stage dies at work; the job goes on by itself."""
    left, ended = set(stages), threading.Event()

    def kill_each() -> None:
        while left and not ended.wait(0.01):
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    title = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
                    for name in [name for name in left if f"({name})" in title]:
                        # A decoder process shows that decoding has begun, a file that the later stages have.
                        if descendants(pid) if name == "Decode" else list(tmp_path.rglob("*.parquet")):
                            os.kill(pid, signal.SIGKILL)
                            left.remove(name)

    killer = threading.Thread(target=kill_each)
    killer.start()
    try:
        summary = embed([world.videos], tmp_path, config)
    finally:
        ended.set()
        killer.join()
    assert not left
    assert (summary.embedded, summary.quarantined) == (9, [])
    assert files_of(tmp_path) == files_of(features)


def files_of(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (store / "chunks").rglob("*.parquet")}


def test_training_resumes_after_a_kill(features: Path, world, tmp_path: Path):
    run = tmp_path / "run"
    arguments = ["train", str(features), "-a", str(world.train), "-o", str(run), "--epochs", "6", "--json"]
    for value in ("model.dim=32", "model.heads=2", "train.cpus_per_worker=0.5"):
        arguments += ["--set", value]

    def histories() -> list[list[dict[str, float]]]:
        """The rows that every stored checkpoint carries, the newest one's last."""
        found = []
        for path in run.glob("run/checkpoint_*/history.json"):
            with contextlib.suppress(OSError, ValueError):  # being written, or being deleted
                found.append(json.loads(path.read_text()))
        return sorted(found, key=len)

    run_and_kill(arguments, lambda: len((histories() or [[]])[-1]) >= 2, tmp_path)
    before = histories()[-1]
    assert 2 <= len(before) < 6
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
    assert [row["epoch"] for row in history] == list(range(1, 7))
    # The rows have the killed run's times, so those epochs were not trained again. The last one may be:
    # its checkpoint was still being stored.
    assert history[: len(before) - 1] == before[:-1]
    network, info = load_network(run / "last")
    assert info.epoch == 6
    assert all(np.isfinite(p.detach().numpy()).all() for p in network.parameters())
