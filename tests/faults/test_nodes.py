"""Jobs on several nodes: a head without CPUs, workers that join, and workers that are lost.

Results go to object storage: a server on loopback that speaks S3's protocol.

The tests build on each other: each continues with the results of the one before.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest
import yaml
from pyarrow import fs

from benchmarks.common.nodes import Node
from benchmarks.common.processes import descendants, free_port
from tests import moto
from tests import nodes as several
from tests.nodes import ROOT, Cluster, titles
from vmr_ray.config import Config, ModelConfig, TrainConfig
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_network
from vmr_ray.search.searcher import Searcher
from vmr_ray.storage import filesystem
from vmr_ray.training.train import train

COPIES = 7  # of each video under other names, so that a job takes long enough to lose a node in its middle
EVERY = 20  # epochs from one checkpoint to the next
EPOCHS = 4 * EVERY
SMALL = ("model.dim=32", "model.heads=2", "train.cpus_per_worker=0.5", f"train.evaluate_every={EVERY}")


OUT = "s3://archive/out"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with moto.bucket("archive") as env, several.cluster(env) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def videos(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's videos and their copies."""
    folder = tmp_path_factory.mktemp("nodes") / "videos"
    folder.mkdir()
    for video in world.videos.glob("*.mp4"):
        (folder / video.name).hardlink_to(video)
        for copy in range(COPIES):
            (folder / f"copy{copy}_{video.name}").hardlink_to(video)
    return folder


def results(pattern: str) -> list[str]:
    """URIs of what the pipeline has written so far."""
    bucket, path = filesystem(OUT)
    found = bucket.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return [f"s3://{info.path}" for info in found if PurePosixPath(info.path).match(f"{path}/{pattern}")]


class Job:
    """The pipeline as a job; its settings may differ from call to call."""

    def __init__(self, nodes: Cluster, world: Any, videos: Path, *settings: str):
        command = [sys.executable, "jobs/pipeline.py", videos, "-a", world.train, "--test", world.test]
        command += ["-o", OUT]
        for value in (*SMALL, *settings):
            command += ["--set", value]
        submit = ["ray", "job", "submit", "--working-dir", ".", "--", *command]
        self._done: list[subprocess.CompletedProcess[str]] = []
        self._thread = threading.Thread(
            target=lambda: self._done.append(nodes.run(*map(str, submit))), daemon=True
        )
        self._thread.start()

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until the running job meets the condition."""
        deadline = time.monotonic() + 360
        while not condition():
            assert self._thread.is_alive(), self._done[0].stdout + self._done[0].stderr
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> tuple[int, dict[str, Any], str]:
        """The exit code of `ray job submit`, the outcome that the job printed at its end, and its log."""
        self._thread.join()
        done = self._done[0]
        log = done.stdout + done.stderr
        lines = [line for line in log.splitlines() if line.startswith("{")]
        assert lines, log
        return done.returncode, json.loads(lines[-1]), log


def statuses(outcome: dict[str, Any]) -> dict[str, str]:
    return {name: step["status"] for name, step in outcome["steps"].items()}


def digests(store: str | Path) -> dict[str, str]:
    """SHA-256 of the features of every video."""
    return {
        v.video_id: hashlib.sha256(v.features.tobytes()).hexdigest() for v in FeatureStore.open(str(store))
    }


def embeds(node: Node, stage: str = "DecodeEncodeWrite") -> bool:
    """Whether a worker of this stage runs on the node and has started its decoder, a child process."""
    return any(f"({stage})" in title and descendants(pid) for pid, title in titles(node.pid).items())


def assert_same(store: str, undisturbed: Path, count: int) -> None:
    """The features of all videos and their copies equal those of `undisturbed`, bit by bit."""
    found, expected = digests(store), digests(undisturbed)
    assert len(found) == count
    for name, digest in found.items():
        assert digest == expected[name.split("_", 1)[1] if name.startswith("copy") else name], name


def test_a_node_lost_in_embedding_changes_nothing(nodes: Cluster, features: Path, world, videos: Path):
    """Then the pipeline fails because of a mistake in the input, which has its own exit code."""
    count = 9 * (1 + COPIES)

    def written() -> int:
        return len(results("features-*/chunks/*/*.parquet"))

    job = Job(nodes, world, videos, "train.workers=100")
    # When the job is submitted, the cluster has no CPU yet, as in a cloud.
    nodes.join()
    nodes.join()
    job.wait_for(lambda: all(map(embeds, nodes.workers)) and written())
    nodes.lose(nodes.workers[1])
    written_before = written()
    nodes.join()
    code, outcome, log = job.end()
    assert 0 < written_before < count, "the node was not lost in the middle"

    assert code != 0 and "exit code 2" in log and "Traceback" not in log, log
    assert statuses(outcome) == {
        "embed": "done",
        "train": "failed",
        "evaluate": "pending",
        "index": "pending",
    }
    assert "use fewer workers" in outcome["steps"]["train"]["error"]
    embedded = outcome["steps"]["embed"]["result"]
    assert (embedded["embedded"], embedded["quarantined"]) == (count, [])
    (store,) = results("features-*")
    assert_same(store, features, count)


def test_encoders_go_to_the_nodes_with_gpus_and_a_lost_decoder_changes_nothing(
    nodes: Cluster, features: Path, videos: Path, tmp_path: Path
):
    """The GPU is simulated (its encoder runs on a CPU), and no node has one yet when the embedding begins."""
    store, count = f"{OUT}/by-gpu", 9 * (1 + COPIES)
    done: list[subprocess.CompletedProcess[str]] = []
    command = ["vmr", "embed", videos, "-o", store, "--num-gpus", "1", "--set", "embed.device=cpu", "--json"]
    thread = threading.Thread(target=lambda: done.append(nodes.run(*command)), daemon=True)
    thread.start()

    def wait_for(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert thread.is_alive(), done[0].stderr
            assert time.monotonic() < deadline
            time.sleep(0.02)

    wait_for(lambda: all(embeds(node, "Decode") for node in nodes.workers))
    assert not results("by-gpu/chunks/*/*.parquet"), "encoded without a GPU"
    accelerated = nodes.join(gpus=1)
    wait_for(lambda: len(results("by-gpu/chunks/*/*.parquet")) >= 2)
    encoders = [node for node in nodes.workers if any("(Encode)" in t for t in titles(node.pid).values())]
    lost = next(node for node in nodes.workers if node is not accelerated)
    nodes.lose(lost)
    written_before = len(results("by-gpu/chunks/*/*.parquet"))
    nodes.join()
    thread.join()
    # A node whose torch cannot use its GPU reports that in one sentence.
    refused = nodes.run("vmr", "embed", min(videos.iterdir()), "-o", tmp_path / "features")
    nodes.lose(accelerated)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    assert "torch cannot use the device 'cuda'" in refused.stderr
    assert encoders == [accelerated]
    assert done[0].returncode == 0, done[0].stderr
    assert 0 < written_before < count, "the node was not lost in the middle"
    summary = json.loads(done[0].stdout)
    assert (summary["embedded"], summary["quarantined"]) == (count, [])
    assert_same(store, features, count)


def test_a_node_lost_in_training_changes_nothing(
    nodes: Cluster, cluster, world, videos: Path, tmp_path: Path
):
    """The pipeline resumes where it failed, and its training from the last checkpoint."""

    def history() -> list[dict[str, float]]:
        """The rows of the newest stored checkpoint."""
        found: list[list[dict[str, float]]] = [[]]
        for uri in results("run-*/run/checkpoint_*/history.json"):
            bucket, path = filesystem(uri)
            with suppress(OSError, ValueError):  # being written, or being deleted
                found.append(json.loads(bucket.open_input_stream(path).read()))
        return max(found, key=len)

    job = Job(nodes, world, videos, f"train.epochs={EPOCHS}")
    job.wait_for(lambda: len(history()) >= 2)
    before = history()
    (trains,) = (n for n in nodes.workers if any("RayTrainWorker" in t for t in titles(n.pid).values()))
    nodes.lose(trains)
    nodes.join()
    code, outcome, log = job.end()
    assert code == 0, log
    assert statuses(outcome) == {"embed": "skipped", "train": "done", "evaluate": "done", "index": "done"}
    assert set(outcome["steps"]["evaluate"]["result"]) >= {"model", "constant", "shuffled"}
    assert outcome["steps"]["index"]["result"]["videos"] == 9 * (1 + COPIES)

    (run,), (store,) = results("run-*"), results("features-*")
    fs.copy_files(run, str(tmp_path / "run"))
    fs.copy_files(store, str(tmp_path / "features"))
    rows = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["epoch"] for row in rows] == list(range(EVERY, EPOCHS + 1, EVERY))
    # The first attempt's times: its epochs were not trained again, except one at most, still being stored.
    assert rows[: len(before) - 1] == before[:-1]
    config = Config(
        model=ModelConfig(dim=32, heads=2),
        train=TrainConfig(epochs=EPOCHS, evaluate_every=EVERY, cpus_per_worker=0.5),
    )
    undisturbed = train(tmp_path / "features", world.train, tmp_path / "undisturbed", config)
    found, expected = load_network(tmp_path / "run" / "last")[0], load_network(undisturbed.last)[0]
    for (name, one), (_, other) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert one.detach().numpy() == pytest.approx(other.detach().numpy(), abs=1e-3), name


def test_only_what_changed_is_done_again(nodes: Cluster, world, videos: Path):
    """A setting of the evaluation changes, and a video without annotations is removed."""
    removed = min(videos.glob("copy0_*"))
    removed.unlink()
    code, outcome, log = Job(nodes, world, videos, f"train.epochs={EPOCHS}", "evaluate.nms=0.4").end()
    assert code == 0, log
    assert statuses(outcome) == {"embed": "done", "train": "skipped", "evaluate": "done", "index": "done"}
    (index,) = results("index-*")
    indexed = {video["video_id"] for video in Searcher(index).videos()}
    assert indexed == {video.name for video in videos.glob("*.mp4")} and removed.name not in indexed


def test_a_node_lost_in_serving_is_hardly_seen(nodes: Cluster, world, tmp_path: Path):
    """Two replicas on two nodes, deployed as the README does; one node is lost, and another one joins."""
    port, (index,) = free_port(), results("index-*")
    config = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["index"] = index
    config["applications"][0]["deployments"] = [
        {"name": name, "num_replicas": 2, "max_replicas_per_node": 1} for name in ("Api", "Ranker")
    ]
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    deployed = nodes.run("serve", "deploy", path, "--address", nodes.dashboard)
    assert deployed.returncode == 0, deployed.stderr

    def replicas(node: Node) -> int:
        return sum("Ranker" in title or "Api" in title for title in titles(node.pid).values())

    body = {"query": "the red ball spins", "top_k": 3}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        def answer() -> int:
            try:
                return client.post("/v1/search", json=body).status_code
            except httpx.TransportError:
                return 0

        def until(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 180
            while not condition():
                assert time.monotonic() < deadline, nodes.run("serve", "status").stdout
                time.sleep(0.5)

        until(lambda: answer() == 200 and all(replicas(node) == 2 for node in nodes.workers))
        found = client.post("/v1/search", json=body).json()["results"]
        assert len(found) == 3
        lost = max(nodes.workers, key=replicas)
        statuses: Counter[int] = Counter()
        nodes.lose(lost)
        nodes.join()
        for _ in range(40):
            statuses[answer()] += 1
            time.sleep(0.1)
        assert set(statuses) <= {200, 503} and statuses[200] >= 20, statuses
        until(lambda: all(replicas(node) == 2 for node in nodes.workers))
        again = client.post("/v1/search", json=body).json()["results"]
        assert [(m["video_id"], m["start"]) for m in again] == [(m["video_id"], m["start"]) for m in found]

        # Videos are added to an index on object storage as to any other.
        nodes.join()
        data, name = min(world.videos.glob("*.mp4")).read_bytes(), "uploaded.mp4"
        sent = client.post(
            "/v1/videos", params={"name": name}, content=data, headers={"content-type": "video/mp4"}
        )
        assert sent.status_code == 202, sent.text
        until(lambda: client.get(f"/v1/jobs/{sent.json()['job_id']}").json()["status"] in ("done", "failed"))
        assert client.get(f"/v1/jobs/{sent.json()['job_id']}").json()["status"] == "done"
        own = client.post("/v1/search", json={**body, "video_ids": [name]}).json()["results"]
        assert own and {m["video_id"] for m in own} == {name}
        part = client.get(f"/v1/videos/{name}/stream", headers={"range": "bytes=10-19"})
        assert part.status_code == 206 and part.content == data[10:20]
        assert results("index-*/ingest/uploads/*.mp4")
        assert client.delete(f"/v1/videos/{name}").status_code == 204
        assert client.post("/v1/search", json={**body, "video_ids": [name]}).status_code == 400
        assert not results("index-*/ingest/uploads/*.mp4")
