"""Workers come for a long queue and go after it: the curve, from Ray's own autoscaler.

    python benchmarks/autoscaling.py --json autoscaling.json

A head without CPUs and Ray's provider of nodes that are processes on this machine: everything but the
machines is what a cluster has. `vmr embed` gets a queue of short videos; nodes of one CPU are counted twice
a second, until all of them have gone. More nodes than cores do not make it faster, and are not meant to.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from media import render
from processes import started_by
from rich.console import Console

out = Console(width=100)


@contextmanager
def cluster(nodes: int, idle_minutes: float) -> Iterator[str]:
    """A head whose autoscaler starts up to `nodes` workers of one CPU; yields its address."""
    port, client = _free_port(), _free_port()
    address = f"127.0.0.1:{port}"
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    config = {
        "cluster_name": "scaling",
        "max_workers": nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_minutes,
        # All nodes have one address here: without their ids Ray would take them for one that never answers.
        "provider": {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True}
        | {"disable_node_updaters": True, "disable_launch_config_check": True},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": nodes},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    (folder / "cluster.json").write_text(json.dumps(config))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
    command += [
        f"--ray-client-server-port={client}",
        f"--autoscaling-config={folder / 'cluster.json'}",
    ]
    env = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in (folder / "log").read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the head does not start: " + (folder / "log").read_text())
                time.sleep(0.2)
            yield address
        finally:
            for pid in [*started_by(process.pid), process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main(
    videos: Annotated[int, typer.Option(help="in the queue")] = 200,
    seconds: Annotated[int, typer.Option(help="of each video")] = 20,
    nodes: Annotated[int, typer.Option(help="at most")] = 4,
    idle_minutes: Annotated[float, typer.Option(help="after which a worker goes")] = 0.2,
    json_: Annotated[Path | None, typer.Option("--json", help="write figures and curve there")] = None,
) -> None:
    """Record and print the curve."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with cluster(nodes, idle_minutes) as address, tempfile.TemporaryDirectory() as folder:
        os.environ["RAY_ADDRESS"] = address
        import ray

        from vmr_ray.cluster import connect
        from vmr_ray.embedding.embed import embed

        queue = Path(folder) / "videos"
        queue.mkdir()
        one = render(Path(folder) / "one.mp4", (640, 360), seconds, 2)
        for i in range(videos):
            (queue / f"{i:05d}.mp4").hardlink_to(one)
        connect()
        curve: list[tuple[float, int]] = []
        ended, began = threading.Event(), time.monotonic()

        def count() -> None:
            while not ended.wait(0.5):
                workers = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
                curve.append((round(time.monotonic() - began, 1), workers))

        thread = threading.Thread(target=count)
        thread.start()
        try:
            summary = embed([queue], Path(folder) / "features")
            embedded = time.monotonic() - began
            while curve[-1][1] and time.monotonic() - began < embedded + 60 * idle_minutes + 120:
                time.sleep(0.5)
        finally:
            ended.set()
            thread.join()
        ray.shutdown()
    steps = [curve[0], *(after for before, after in pairwise(curve) if after[1] != before[1])]
    for at, workers in steps:
        out.print(f"{at:7.1f} s  {'#' * workers}{workers:>{nodes + 3 - workers}}", highlight=False)
    peak = max(workers for _, workers in curve)
    figures = {
        "videos": summary.embedded,
        "embed_s": embedded,
        "peak_nodes": peak,
        "first_node_s": next((at for at, workers in curve if workers), -1.0),
        "peak_s": next(at for at, workers in curve if workers == peak),
        "end_nodes": curve[-1][1],
        "gone_after_s": curve[-1][0] - embedded,
    }
    for key, value in figures.items():
        out.print(f"{key}: {value:g}", highlight=False)
    if json_:
        json_.write_text(json.dumps({**figures, "curve": steps}, indent=1))


if __name__ == "__main__":
    typer.run(main)
