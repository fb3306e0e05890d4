"""`ray job submit` and `serve deploy` against a running Ray head, as on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tests.integration.test_serve import free_port
from vmr_ray.checkpoint import load_network

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Head:
    """A Ray head in processes of its own."""

    dashboard: str
    env: dict[str, str]

    def run(self, *command: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def submit(self, *entrypoint: str) -> tuple[int, str]:
        """Run an entry point as a job; returns (exit code, log)."""
        done = self.run("ray", "job", "submit", "--working-dir", ".", "--", str(sys.executable), *entrypoint)
        return done.returncode, done.stdout + done.stderr


def result(log: str) -> dict:
    """The JSON that a job prints last."""
    return json.loads([line for line in log.splitlines() if line.startswith("{")][-1])


def statuses(log: str) -> dict[str, str]:
    """Of every step of a pipeline."""
    return {name: step["status"] for name, step in result(log)["steps"].items()}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    port, dashboard = free_port(), free_port()
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    env.pop("RAY_ADDRESS", None)
    # Its own directory, short for the sake of its sockets: nobody else's `ray.init()` shall find this head.
    temporary = tempfile.mkdtemp(prefix="ray-")
    log = (tmp_path_factory.mktemp("head") / "log").open("w+")
    process = subprocess.Popen(
        [
            *(BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", "--disable-usage-stats"),
            f"--temp-dir={temporary}",
            *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
        ],
        cwd=ROOT,
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    head = Head(f"http://127.0.0.1:{dashboard}", env)
    try:
        deadline = time.monotonic() + 120
        while head.run("ray", "job", "list").returncode:
            log.seek(0)
            assert process.poll() is None and time.monotonic() < deadline, log.read()
            time.sleep(1)
        yield head
    finally:
        # `ray start --block` ends the processes it started when it is told to end.
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def test_jobs_run_the_whole_way(head: Head, world, tmp_path: Path):
    """The pipeline fails in the middle, goes on there, and repeats only what changed; then it is served."""
    small = ["--set", "model.dim=32", "--set", "model.heads=2", "--set", "train.cpus_per_worker=0.5"]
    job = [
        "jobs/pipeline.py",
        str(world.videos),
        "--annotations",
        str(world.train),
        "--test",
        str(world.test),
    ]
    job += ["--out", str(tmp_path / "out"), "--set", "train.epochs=1", *small]

    code, log = head.submit(*job, "--set", "train.workers=100")
    assert code != 0 and "exit code 2" in log and "Traceback" not in log, log
    assert statuses(log) == {"embed": "done", "train": "failed", "evaluate": "pending", "index": "pending"}
    assert "use fewer workers" in result(log)["steps"]["train"]["error"]

    code, log = head.submit(*job)
    assert code == 0, log
    assert statuses(log) == {"embed": "skipped", "train": "done", "evaluate": "done", "index": "done"}
    first = result(log)
    assert load_network(first["checkpoint"])[1].epoch == 1
    assert first["steps"]["embed"]["result"]["embedded"] == 9
    assert set(first["steps"]["evaluate"]["result"]) >= {"model", "constant", "shuffled"}
    assert first["steps"]["index"]["result"]["videos"] == 9

    code, log = head.submit(*job, "--set", "evaluate.nms=0.4")
    assert code == 0, log
    assert statuses(log) == {"embed": "skipped", "train": "skipped", "evaluate": "done", "index": "skipped"}
    index = result(log)["index"]
    assert index == first["index"]

    port = free_port()
    config = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["index"] = index
    path = tmp_path / "local.yaml"
    path.write_text(yaml.safe_dump(config))
    deployed = head.run("serve", "deploy", str(path), "--address", head.dashboard)
    assert deployed.returncode == 0, deployed.stderr
    deadline = time.monotonic() + 180
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while True:
            try:
                if client.get("/healthz").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, head.run(
                "serve", "status", "--address", head.dashboard
            ).stdout
            time.sleep(1)
        answer = client.post("/v1/search", json={"query": "the red ball spins", "top_k": 3})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"]) == 3


def test_a_failed_job_says_so(head: Head, tmp_path: Path):
    code, log = head.submit("jobs/embed.py", str(tmp_path / "gone"), "--out", str(tmp_path / "out"))
    assert code != 0
    assert "no such file or directory" in log and "Traceback" not in log
