"""Joining (or starting) a Ray cluster, and the size of its pools of workers."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmr_ray.errors import VmrError, one_line

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy

START_PATIENCE = "VMR_RAY_START_S"  # environment variable
# What Serve's HTTP proxies put around themselves; Serve loads it in their processes.
SERVE_PROXY = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "vmr_ray.serve.door.middlewares")
_quiet = False


def quiet() -> None:
    """Hide Ray's progress bars and logs in this process from the next `connect` on.

    For a program such as `vmr`, whose output is its own: the levels of Ray's loggers change. A process that
    does not call this keeps its logging as it is.
    """
    global _quiet
    _quiet = True


def connect(**options: Any) -> None:
    """Join the cluster of RAY_ADDRESS or the one running on this machine; else start one here.

    Does not join again if this process is connected. `options` go to `ray.init`. A cluster that starts here
    listens on loopback only.

    Raises:
        VmrError: Ray has not started within VMR_RAY_START_S seconds.
    """
    # Where these are not set, Ray warns that their defaults will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ray Serve's proxies read this, if the cluster starts here.
    os.environ.setdefault(*SERVE_PROXY)
    import ray

    if not ray.is_initialized():
        defaults = {
            "address": _address(),
            "logging_level": logging.getLogger("ray").level,  # `ray.init` sets it: to what it is
            **({"log_to_driver": False} if _quiet else {}),
        }
        settings = defaults | options
        with (
            silence() if _quiet else nullcontext(),
            _loopback_only() if settings["address"] == "local" else nullcontext(),
        ):
            _init(settings)
    _keep_exceptions()
    if _quiet:
        _hide_progress_and_logs()


def _keep_exceptions() -> None:
    """Let Ray Data raise a worker's own exception. Wrapped in Ray Data's, it is lost on the way from the
    worker, and a VmrError or a full disk would end in a traceback."""
    from ray.data import DataContext

    DataContext.get_current().raise_original_map_exception = True


def _init(options: dict[str, Any]) -> None:
    """`ray.init`, repeated while the start takes longer than Ray waits for its own processes."""
    import ray  # isort: split
    import psutil  # type: ignore[import-untyped]  # Ray brings it along

    patience = _patience()
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(math.ceil(patience)))
    end = time.monotonic() + patience
    earlier = set(psutil.Process().children())
    while True:
        try:
            ray.init(**options)
            return
        except Exception as error:
            if not isinstance(error, TimeoutError) and "timed out" not in str(error).lower():
                raise
            # Ray leaves the processes of a start that failed.
            for child in set(psutil.Process().children()) - earlier:
                child.kill()
                child.wait()
            if time.monotonic() >= end:
                raise VmrError(
                    f"Ray has not started within {patience:g} s ({one_line(error, 200)}): stop other "
                    f"programs, or set {START_PATIENCE} to more seconds"
                ) from None
        time.sleep(1)


def _patience() -> float:
    """Seconds that Ray may take to start."""
    text = os.environ.get(START_PATIENCE, "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise VmrError(f"{START_PATIENCE} is {text!r}: give a number of seconds")
    return seconds


def _hide_progress_and_logs() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs the errors that it raises, too
    _hide_end_of_serve()


def _hide_end_of_serve() -> None:
    """Ray prints that Serve's controller has ended, when it was asked to, as if that were an error."""
    from ray._private import worker

    shown = getattr(worker, "print_to_stdstream", None)  # a later Ray may not have it
    if shown is not None and shown.__module__ != __name__:

        def show(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            if not any("ServeController.graceful_shutdown" in line for line in data["lines"]):
                shown(data, *args, **kwargs)

        worker.print_to_stdstream = show


@contextmanager
def silence() -> Iterator[None]:
    """Discard everything written to stderr, also by native code. Errors are still raised."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@contextmanager
def _loopback_only() -> Iterator[None]:
    """A cluster that starts meanwhile has the address 127.0.0.1, so that all of Ray's servers listen there,
    and only this user may read its token."""
    from ray._private import ray_constants

    token = auth_token_file()
    token.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
    saved = ray_constants.ENABLE_RAY_CLUSTER
    # Ray's switch for a machine that is a cluster by itself: ray.init(_node_ip_address) accepts no loopback.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = saved
        with suppress(OSError):  # there is none, or it is another user's
            token.chmod(0o600)


def auth_token_file() -> Path:
    """Where Ray keeps the token of its clusters. Who can read it can run code on them."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def _address() -> str | None:
    """None lets Ray find its cluster; "local" starts one here. It is also the answer if the last one here is
    dead, because Ray would wait for it."""
    if address := os.environ.get("RAY_ADDRESS"):
        return "local" if address == "local" else None
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    if not note.exists():
        return "local"
    host, _, port = note.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return "local"
    return None


def cluster_cpus() -> int:
    """The CPUs of the whole cluster at this moment, at least 1: workers may still join."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def autoscaling_pool(tasks: int) -> ActorPoolStrategy:
    """A worker for each CPU of the cluster, also for those that join later, but no more than `tasks`.

    The workers must claim one CPU each: this limits the pool, and lets the cluster add nodes.
    """
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(min_size=min(cluster_cpus(), tasks), max_size=tasks)


def cluster_gpus() -> float:
    """The GPUs of the whole cluster at this moment."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))
