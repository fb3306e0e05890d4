"""Serves one index from this process, as `vmr serve` and the demo do."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmr_ray.errors import VmrError
from vmr_ray.storage import absolute

# No log line for each request, because that costs much of the throughput.
_LOGGING = {"log_level": logging.WARNING, "enable_access_log": False}


def start(
    index: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: str | Path | None = None,
    roots: Sequence[str] = (),
    replicas: int = 1,
    **settings: Any,
) -> str:
    """Deploy the application, wait until it is ready and return its URL.

    Args:
        key_file: API keys; without it, and without keys in VMR_API_KEYS, only this machine is answered.
        roots: directories and URI prefixes from which videos may be added.
        replicas: of each deployment but `Ingest`; with two, one may die or be replaced unnoticed.
        settings: other fields of `ServeArgs`.

    Raises:
        VmrError: there is no index, its checkpoint is damaged, the port is taken, other machines
            could search without a key, or the service does not start (the cluster has no room for it).
    """
    from ray import serve

    from vmr_ray.cluster import connect, silence
    from vmr_ray.model.checkpoint import check_weights, load_info
    from vmr_ray.search.tables import IndexTables
    from vmr_ray.serve.app import assemble
    from vmr_ray.serve.auth import ENVIRONMENT, is_loopback

    index = absolute(index)
    auth = "keys" if key_file or os.environ.get(ENVIRONMENT) else "none"
    if auth == "none" and not is_loopback(host):
        raise VmrError(
            f"--host {host} lets other machines use the service: give --key-file FILE (`vmr keys new NAME "
            f"--file FILE` makes a key) or set {ENVIRONMENT}"
        )
    check_port(host, port)
    application = assemble(
        {
            "index": index,
            "auth": auth,
            "key_file": absolute(key_file) if key_file else None,
            "split_encoder": False,
            "roots": [absolute(root) for root in roots],
            **settings,
        },
        replicas,
    )
    connect()
    IndexTables.open(index)
    checkpoint = f"{index}/checkpoint"
    # Checked here, because the error of a replica would be a traceback.
    check_weights(checkpoint, load_info(checkpoint))
    serve.start(
        proxy_location="HeadOnly",
        # No timeout for a whole request: it would cut long uploads and videos. The service has its own.
        http_options={"host": host, "port": port, "request_timeout_s": None},
        logging_config=_LOGGING,
    )
    try:
        run(application)
    except BaseException:  # also Ctrl-C
        with silence():
            withdraw()  # else it would start as soon as there is room, on a cluster that stays
        raise
    return f"http://{host}:{port}/"


def run(application: Any, room_timeout_s: float = 120) -> None:
    """Deploy the application, or replace the deployed one, and wait until it runs.

    Raises:
        VmrError: a deployment failed, or the cluster has had no room for it for `room_timeout_s` seconds.
    """
    import ray
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    target = serve.RunTarget(target=application, name="vmr", route_prefix="/", logging_config=_LOGGING)
    serve.run_many([target], wait_for_applications_running=False)
    had_room = time.monotonic()
    while True:
        state = serve.status().applications["vmr"]
        if state.status == ApplicationStatus.RUNNING:
            return
        waiting = {name: d.message for name, d in state.deployments.items() if d.status.name != "HEALTHY"}
        # A slow start is waited for; a replica that no node has room for would never start.
        unscheduled = any("to be scheduled" in message for message in waiting.values())
        if not unscheduled or ray.available_resources().get("CPU", 0) >= 1:
            had_room = time.monotonic()
        if state.status == ApplicationStatus.DEPLOY_FAILED:
            raise VmrError(
                f"the service did not start: {', '.join(waiting)} failed; `vmr -v serve` shows the logs"
            )
        if time.monotonic() - had_room > room_timeout_s:
            raise VmrError(
                f"the cluster has no room for the service ({', '.join(waiting)}): stop other programs on it, "
                "or add CPUs"
            )
        time.sleep(0.2)


def check_port(host: str, port: int) -> None:
    """Raises VmrError if the port cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise VmrError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --port"
            ) from None


def serve_until_interrupt() -> None:
    """Wait for Ctrl-C or SIGTERM, then stop the service."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        stop()


def withdraw() -> None:
    """Delete the application. The cluster stays, and what else runs on it.

    Serve keeps the port of its first application, so it ends with the last one: the next may have another.
    """
    from ray import serve

    if "vmr" in serve.status().applications:
        serve.delete("vmr")
    if not serve.status().applications:
        serve.shutdown()  # nothing happens if Serve does not run


def stop() -> None:
    """Delete the application and leave the cluster; a cluster that this process started ends."""
    import ray

    from vmr_ray.cluster import silence

    with silence():
        withdraw()
        ray.shutdown()
