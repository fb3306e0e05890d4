"""Ray nodes in processes of their own, several on one machine, and their end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def head() -> Iterator[str]:
    """A head that takes no work; yields its address. Nobody else's `ray.init()` finds it."""
    port, temporary = free_port(), tempfile.mkdtemp(prefix="ray-")  # short, for the sake of its sockets
    options = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    options += [f"--temp-dir={temporary}", f"--ray-client-server-port={free_port()}"]
    try:
        with _started(options):
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def worker(address: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A node of one CPU in the cluster at `address`."""
    return _started([f"--address={address}", "--num-cpus=1"])


@contextlib.contextmanager
def _started(options: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start`, once it says that it has; it ends with all its processes.

    One after the other: of two that start at once with the same address, Ray takes one for the other.
    """
    command = [
        Path(sys.executable).parent / "ray",
        "start",
        "--block",
        "--node-ip-address=127.0.0.1",
        *options,
    ]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while b"Ray runtime started" not in (said := Path(log.name).read_bytes()):
                assert process.poll() is None and time.monotonic() < deadline, said.decode()
                time.sleep(0.1)
            yield process
        finally:
            kill_tree(process.pid)
            process.wait()


def kill_tree(pid: int) -> None:
    for each in [*descendants(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
