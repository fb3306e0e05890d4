"""Serving one index from this process, for `vmr serve` and the demo."""

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

# No line for every request: that would cost much of the rate.
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
        key_file: of API keys; without one, and without keys in VMR_API_KEYS, only this machine is answered.
        roots: directories and URI prefixes from which videos may be added.
        replicas: of each part that may have several; with two, one may die or be replaced unnoticed.
        settings: further fields of `ServeArgs`.

    Raises:
        VmrError: there is no index, its checkpoint is damaged, the port is taken, other machines
            could ask without a key, or the service does not come up (the cluster has no room for it).
    """
    from ray import serve

    from vmr_ray.cluster import connect
    from vmr_ray.model.checkpoint import check_weights, load_info
    from vmr_ray.search.tables import IndexTables
    from vmr_ray.serve.app import assemble
    from vmr_ray.serve.auth import ENVIRONMENT, is_loopback

    index = absolute(index)
    auth = "keys" if key_file or os.environ.get(ENVIRONMENT) else "none"
    if auth == "none" and not is_loopback(host):
        raise VmrError(
            f"--host {host} lets other machines ask: give --key-file FILE (`vmr keys new NAME --file FILE` "
            f"makes a key) or set {ENVIRONMENT}"
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
    # Its error is for a person here, and a traceback in a replica.
    check_weights(checkpoint, load_info(checkpoint))
    serve.start(
        proxy_location="HeadOnly",
        # No limit to a whole request: it would cut long uploads and videos. The service has its own limits.
        http_options={"host": host, "port": port, "request_timeout_s": None},
        logging_config=_LOGGING,
    )
    try:
        run(application)
    except VmrError:
        serve.delete("vmr")  # else it would come up whenever there is room
        raise
    return f"http://{host}:{port}/"


def run(application: Any, patience_s: float = 120) -> None:
    """Deploy, or replace what is deployed, and wait until it runs.

    Raises:
        VmrError: a part of it failed, or found no room on the cluster for `patience_s` seconds.
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
        # A machine may be slow to start a replica; one without a place to start in will never run.
        pending = any("to be scheduled" in message for message in waiting.values())
        if not pending or ray.available_resources().get("CPU", 0) >= 1:
            had_room = time.monotonic()
        if state.status == ApplicationStatus.DEPLOY_FAILED:
            raise VmrError(
                f"the service did not start: {', '.join(waiting)} failed; `vmr -v serve` shows the logs"
            )
        if time.monotonic() - had_room > patience_s:
            raise VmrError(
                f"the cluster has no room for the service ({', '.join(waiting)}): end what else runs on it, "
                "or add CPUs"
            )
        time.sleep(0.2)


def check_port(host: str, port: int) -> None:
    """Raises VmrError if nobody can listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise VmrError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --port"
            ) from None


def serve_until_interrupt() -> None:
    """Wait for Ctrl-C (or SIGTERM, which a supervisor sends), then take the application down."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        stop()


def stop() -> None:
    """Take the application down and leave the cluster (one that was started here ends)."""
    import ray
    from ray import serve

    from vmr_ray.cluster import silence

    with silence():
        serve.delete("vmr")  # a cluster that was joined may serve others too
        ray.shutdown()
