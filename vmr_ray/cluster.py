"""Joining (or starting) a Ray cluster, quietly."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy


verbose = False  # Ray's own progress and logs are shown: `vmr -v`


def connect(**options: Any) -> None:
    """Join the cluster of RAY_ADDRESS or the one running here; else start one on this machine.

    Joins nothing when already connected. `options` go to `ray.init`.
    """
    # Ray's own notices are for operators; a person at a terminal asked for something else.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        options = {
            "logging_level": logging.INFO if verbose else logging.ERROR,
            "log_to_driver": verbose,
            "address": _address(),
            **options,
        }
        with nullcontext() if verbose else silence():
            ray.init(**options)
    context = DataContext.get_current()
    context.enable_progress_bars = verbose
    context.enable_operator_progress_bars = verbose
    context.print_on_execution_start = verbose
    if not verbose:
        for name in ("ray", "ray.train", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it says of errors it raises, too


@contextmanager
def silence() -> Iterator[None]:
    """Nothing on stderr, not even from native code: Ray's own notices; what matters it raises."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _address() -> str | None:
    """None lets Ray find its cluster; "local" if the last one here is dead, for Ray would wait for it."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    if os.environ.get("RAY_ADDRESS") or not note.exists():
        return None
    host, _, port = note.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return "local"
    return None


def cluster_cpus() -> int:
    """CPUs of the whole cluster as it is now, at least 1: workers may be yet to come."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def growing_pool(tasks: int) -> ActorPoolStrategy:
    """A worker for each CPU that there is now, and for each that joins later, at most one a task.

    The workers must claim a CPU each: that is what ends the growth, and what lets the cluster grow.
    """
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(min_size=min(cluster_cpus(), tasks), max_size=tasks)


def cluster_gpus() -> float:
    """GPUs of the whole cluster."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))
