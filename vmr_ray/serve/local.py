"""Serving one index from this process, for `vmr serve` and the demo."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmr_ray.errors import VmrError


def start(
    index: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: str | Path | None = None,
    roots: Sequence[str] = (),
    **settings: Any,
) -> str:
    """Deploy the application, wait until it is ready and return its URL.

    Args:
        key_file: of API keys; without one, and without keys in VMR_API_KEYS, only this machine is answered.
        roots: directories and URI prefixes from which videos may be added.
        settings: further fields of `ServeArgs`.

    Raises:
        VmrError: there is no index, its checkpoint is damaged, the port is taken, or other machines
            could ask without a key.
    """
    import logging

    from ray import serve

    from vmr_ray.checkpoint import check_weights, load_info
    from vmr_ray.index import open_tables
    from vmr_ray.runtime import connect
    from vmr_ray.serve.app import build
    from vmr_ray.serve.auth import ENVIRONMENT, is_loopback

    index = str(index) if "://" in str(index) else str(Path(index).expanduser().absolute())
    auth = "keys" if key_file or os.environ.get(ENVIRONMENT) else "none"
    if auth == "none" and not is_loopback(host):
        raise VmrError(
            f"--host {host} lets other machines ask: give --key-file FILE (`vmr keys new NAME --file FILE` "
            f"makes a key) or set {ENVIRONMENT}"
        )
    check_port(host, port)
    application = build(
        {
            "index": index,
            "auth": auth,
            "key_file": str(Path(key_file).expanduser().absolute()) if key_file else None,
            "roots": [str(r) if "://" in str(r) else str(Path(r).expanduser().absolute()) for r in roots],
            **settings,
        }
    )
    connect()
    open_tables(index)
    checkpoint = f"{index}/checkpoint"
    check_weights(
        checkpoint, load_info(checkpoint)
    )  # its error is for a person here, and a traceback in a replica
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port, "request_timeout_s": 30},
        logging_config={"log_level": logging.WARNING, "enable_access_log": False},
    )
    serve.run(application, name="vmr", route_prefix="/")
    return f"http://{host}:{port}/"


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

    from vmr_ray.runtime import silence

    with silence():
        serve.delete("vmr")  # a cluster that was joined may serve others too
        ray.shutdown()
