"""A disk that is full in the middle of a verb: one sentence, nothing damaged, and the same command completes
the work once there is room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.disks import enlarge, small_disk
from vmr_ray.features import FeatureStore, verify
from vmr_ray.model.checkpoint import load_network
from vmr_ray.search.searcher import Searcher
from vmr_ray.search.tables import IndexTables


def vmr(*arguments: object) -> tuple[int, list[str]]:
    """Run `vmr ARGUMENTS` on a Ray of its own; returns the exit code and the errors that it printed."""
    done = subprocess.run(
        [Path(sys.executable).parent / "vmr", *map(str, arguments)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def run_while_the_disk_grows(
    disk: Path,
    kilobytes: Sequence[int],
    arguments: Sequence[object],
    check: Callable[[], None],
) -> int:
    """Run the same command on a disk of each of these sizes, until it succeeds with the last one.

    Returns how often the disk was full. Each time there is one sentence, and `check` finds nothing damaged.
    """
    failed = 0
    for size in kilobytes:
        enlarge(disk, size)
        code, said = vmr(*arguments)
        if size == kilobytes[-1]:
            assert (code, said) == (0, [])
        elif code:
            (sentence,) = said
            assert code == 1 and sentence.startswith(f"error: cannot write {disk}/"), sentence
            assert sentence.endswith(" (its disk is full): make room, then do the same again")
            failed += 1
        assert not list(disk.rglob("*.part"))
        check()
    return failed


def files_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "chunks").rglob("*.parquet")}


def test_embed(cluster, features: Path, world, tmp_path: Path):
    disk, counts = tmp_path / "disk", []
    undisturbed = files_of(features)

    def check() -> None:
        if (disk / "features" / "store.json").exists():
            assert not verify(str(disk / "features")).problems
        written = files_of(disk / "features")
        assert written.items() <= undisturbed.items()
        counts.append(len(written))

    arguments = ["embed", world.videos, "--out", disk / "features"]
    with small_disk(disk, 4):
        assert run_while_the_disk_grows(disk, (4, 60, 180, 4000), arguments, check) == 3
        # What there was room for is kept, and the rest is added to it.
        assert counts[0] == 0 < counts[1] < counts[2] < counts[3] == len(undisturbed)
        assert not FeatureStore.open(str(disk / "features")).quarantine.rows()


def test_index(cluster, features: Path, trained, index: Path, tmp_path: Path):
    disk = tmp_path / "disk"
    whole = Searcher(index)
    known = {row["video_id"] for row in whole.videos()}

    def check() -> None:
        if tables := IndexTables.find(str(disk / "index")):
            assert set(tables.video_ids()) <= known

    arguments = ["index", features, "--checkpoint", trained.best, "--out", disk / "index"]
    with small_disk(disk, 16):
        assert run_while_the_disk_grows(disk, (16, 300, 600, 8000), arguments, check) >= 2
        searcher = Searcher(disk / "index")
        assert {row["video_id"] for row in searcher.videos()} == known
        assert searcher.search("a ball rolls").moments == whole.search("a ball rolls").moments


def test_train(cluster, features: Path, world, trained, tmp_path: Path):
    disk = tmp_path / "disk"

    def check() -> None:
        for path in disk.rglob("run/best/checkpoint.json"):
            load_network(path.parent)

    arguments = ["train", features, "-a", world.train, "--out", disk / "run", "--epochs", "2"]
    for value in ("model.dim=32", "model.heads=2", "train.cpus_per_worker=0.5"):
        arguments += ["--set", value]
    with small_disk(disk, 8):
        assert run_while_the_disk_grows(disk, (8, 400, 64000), arguments, check) == 2
        history = json.loads((disk / "run" / "history.json").read_text())
        assert [row["epoch"] for row in history] == [1, 2]
        # The same training as on a disk with room.
        network, other = (load_network(Path(run))[0] for run in (disk / "run" / "last", trained.last))
        for weights, expected in zip(network.parameters(), other.parameters(), strict=True):
            np.testing.assert_allclose(weights.detach(), expected.detach(), atol=1e-5)
