"""Several nodes: a head without CPUs, workers that come, and one that is lost in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nodes import descendants, head, kill_tree, worker
from vmr_ray.checkpoint import load_network
from vmr_ray.features import FeatureStore
from vmr_ray.search import Searcher

COPIES = 4  # of each video under other names: there must be a middle


class Nodes:
    """A cluster, and the workers that have joined it."""

    def __init__(self, address: str, stack: ExitStack):
        self.address, self._stack = address, stack
        self.env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": address}
        self.workers: list[subprocess.Popen[bytes]] = []

    def join(self) -> subprocess.Popen[bytes]:
        """One more node of one CPU."""
        self.workers.append(self._stack.enter_context(worker(self.address)))
        return self.workers[-1]


def digests(store: str | Path) -> dict[str, str]:
    """Of the features of every video."""
    return {
        v.video_id: hashlib.sha256(v.features.tobytes()).hexdigest() for v in FeatureStore.open(str(store))
    }


def works(process: subprocess.Popen[bytes]) -> bool:
    """Whether a worker on this node has its decoder, which is a process below it."""
    for pid in descendants(process.pid):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if "(_All)" in title and descendants(pid):
            return True
    return False


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head that takes no work. The tests let workers join."""
    with head() as address, ExitStack() as workers:
        yield Nodes(address, workers)


GROWS = """
import ray
from vmr_ray.runtime import connect, growing_pool
connect()
assert not ray.cluster_resources().get("CPU")
print("begins", flush=True)

class Where:
    def __call__(self, batch):
        import time
        time.sleep(0.5)
        return {"node": [ray.get_runtime_context().get_node_id()]}

seen = set()
data = ray.data.from_items(list(range(600)), override_num_blocks=600)
for row in data.map_batches(Where, batch_size=1, compute=growing_pool(600), num_cpus=1).iter_rows():
    seen.add(row["node"])
    if len(seen) == 2:
        print("grown", flush=True)
        break
"""


def test_pools_begin_without_a_cpu_and_grow(nodes: Nodes):
    command = [sys.executable, "-c", GROWS]
    with subprocess.Popen(command, env=nodes.env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stdout.readline() == "begins\n"
        nodes.join()
        nodes.join()
        said, _ = run.communicate(timeout=240)
    assert said.startswith("grown\n"), said


def test_a_lost_node_changes_nothing(nodes: Nodes, features: Path, world, tmp_path: Path):
    """The pipeline on two nodes; one is killed with all its workers in the middle, another one joins."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for video in world.videos.glob("*.mp4"):
        (videos / video.name).hardlink_to(video)
        for copy in range(COPIES):
            (videos / f"copy{copy}_{video.name}").hardlink_to(video)
    count = 9 * (1 + COPIES)
    command = [
        Path(sys.executable).parent / "vmr",
        "pipeline",
        videos,
        "-a",
        world.train,
        "-o",
        out,
        "--json",
    ]
    for value in ("model.dim=32", "model.heads=2", "train.epochs=1", "train.cpus_per_worker=0.5"):
        command += ["--set", value]

    first, second = nodes.workers or [nodes.join(), nodes.join()]
    run = subprocess.Popen(command, env=nodes.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while not (works(first) and works(second) and list(out.rglob("*.parquet"))):
            assert run.poll() is None and time.monotonic() < deadline, "the nodes do not work"
            time.sleep(0.02)
        kill_tree(second.pid)
        there = len(list(out.rglob("*.parquet")))
        nodes.join()
        said, complaint = run.communicate(timeout=300)
    finally:
        run.kill()
    assert 0 < there < count, "it was not in the middle"
    assert run.returncode == 0, complaint
    outcome = json.loads(said.splitlines()[-1])  # Ray told of the lost node before

    embedded = outcome["steps"]["embed"]["result"]
    assert (embedded["embedded"], embedded["quarantined"]) == (count, [])
    undisturbed, (store,) = digests(features), out.glob("features-*")
    found = digests(store)
    assert len(found) == count
    assert all(
        digest == undisturbed[name.split("_", 1)[1] if name.startswith("copy") else name]
        for name, digest in found.items()
    )

    network, info = load_network(outcome["checkpoint"])
    assert info.epoch == 1 and all(p.isfinite().all() for p in network.parameters())
    assert outcome["steps"]["index"]["result"]["videos"] == count
    assert len(Searcher(outcome["index"]).search("the red ball spins", top_k=3).moments) == 3
