"""Workers come for a long queue and go after it: the curve, from Ray's own autoscaler.

    python -m benchmarks.autoscaling --json autoscaling.json

A head without CPUs and Ray's provider of nodes that are processes on this machine: everything but the
machines is what a cluster has. `vmr embed` gets a queue of short videos; nodes of one CPU are counted twice
a second, until all of them have gone. More nodes than cores do not make it faster, and are not meant to.

The baseline is the same queue on a cluster of which all nodes run from the beginning: what waiting for nodes
costs in time, and what letting them go saves in seconds of nodes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common.media import render
from benchmarks.common.nodes import ray_node
from benchmarks.common.output import (
    Figures,
    JsonOption,
    print_figures,
    print_line,
    print_table,
    run_command,
    write_figures,
)
from benchmarks.common.processes import free_port
from benchmarks.common.timing import repeatedly, wait_until
from vmr_ray.cluster import quiet
from vmr_ray.storage import write_json

Curve = list[tuple[float, int]]  # seconds since the start of the embedding, nodes


def main(
    videos: Annotated[int, typer.Option(help="in the queue")] = 200,
    seconds: Annotated[int, typer.Option(help="of each video")] = 20,
    nodes: Annotated[int, typer.Option(help="limit of nodes")] = 4,
    idle_minutes: Annotated[float, typer.Option(help="after which a node goes")] = 0.2,
    json_: JsonOption = None,
) -> None:
    """Record and print the curve."""
    quiet()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        queue = Path(folder) / "videos"
        queue.mkdir()
        one = render(Path(folder) / "one.mp4", (640, 360), seconds, 2)
        for i in range(videos):
            (queue / f"{i:05d}.mp4").hardlink_to(one)
        with cluster(Path(folder), 0, nodes, idle_minutes):
            curve, embedded = embed_queue(
                queue, Path(folder) / "scaled", wait_seconds=60 * idle_minutes + 120
            )
        with cluster(Path(folder), nodes, nodes, idle_minutes):
            _, fixed = embed_queue(queue, Path(folder) / "fixed", nodes)
    steps = [curve[0], *(after for before, after in pairwise(curve) if after[1] != before[1])]
    for at, count in steps:
        print_line(f"{at:7.1f} s  {'#' * count}{count:>{nodes + 3 - count}}")
    peak = max(count for _, count in curve)
    used = sum(count * (after - at) for (at, count), (after, _) in pairwise(curve))
    figures: Figures = {
        "videos": videos,
        "embed_s": embedded,
        "node_seconds": used,
        "fixed_embed_s": fixed,
        "fixed_node_seconds": nodes * fixed,
        "peak_nodes": peak,
        "first_node_s": next((at for at, count in curve if count), -1.0),
        "peak_s": next(at for at, count in curve if count == peak),
        "end_nodes": curve[-1][1],
        "gone_after_s": curve[-1][0] - embedded,
    }
    print_figures(figures)
    print_table(
        f"{videos} videos of {seconds} s",
        ("", "embedded in s", "seconds of nodes"),
        [
            (f"0 to {nodes} nodes, by the autoscaler", f"{embedded:.1f}", f"{used:.0f}"),
            (f"{nodes} nodes from the beginning", f"{fixed:.1f}", f"{nodes * fixed:.0f}"),
        ],
    )
    write_figures(json_, {**figures, "curve": steps})


@contextmanager
def cluster(folder: Path, least: int, nodes: int, idle_minutes: float) -> Iterator[None]:
    """This process joins a head whose autoscaler keeps `least` to `nodes` workers of one CPU."""
    import ray

    from vmr_ray.cluster import connect

    port = free_port()
    address = f"127.0.0.1:{port}"
    settings = folder / f"cluster-{least}.json"
    write_json(settings, autoscaler_settings(address, least, nodes, idle_minutes))
    options = ["--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false"]
    options += [f"--ray-client-server-port={free_port()}", f"--autoscaling-config={settings}"]
    env = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with ray_node(options, env):
        os.environ["RAY_ADDRESS"] = address
        connect()
        try:
            yield
        finally:
            ray.shutdown()


def autoscaler_settings(address: str, least: int, nodes: int, idle_minutes: float) -> dict[str, Any]:
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": least, "max_workers": nodes}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "scaling",
        "max_workers": nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            # All nodes have one address here: without ids Ray takes them for one that never answers.
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in commands},
    }


def embed_queue(
    queue: Path, features: Path, start_nodes: int = 0, wait_seconds: float = 0.0
) -> tuple[Curve, float]:
    """Embed the queue on the cluster that this process has joined.

    Args:
        start_nodes: wait for so many nodes before it begins.
        wait_seconds: for all nodes to go, after the embedding.

    Returns:
        how many nodes there were when, and the seconds of the embedding.
    """
    from vmr_ray.embedding.embed import embed

    wait_until(lambda: worker_nodes() >= start_nodes)
    curve: Curve = []
    began = time.monotonic()
    with repeatedly(lambda: curve.append((round(time.monotonic() - began, 1), worker_nodes())), 0.5):
        summary = embed([queue], features)
        embedded = time.monotonic() - began
        deadline = began + embedded + wait_seconds
        while curve[-1][1] and time.monotonic() < deadline:
            time.sleep(0.5)
    if summary.embedded < summary.videos:
        raise RuntimeError(f"only {summary.embedded} of {summary.videos} videos were embedded")
    return curve, embedded


def worker_nodes() -> int:
    import ray

    return sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())


if __name__ == "__main__":
    run_command(main)
