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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
Node = subprocess.Popen[bytes]


@dataclass
class Cluster:
    """A head that takes no work, as on a cloud, and the workers that have joined it."""

    address: str
    dashboard: str
    env: dict[str, str]  # of whoever uses it
    workers: list[Node] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def join(self, gpus: int = 0) -> Node:
        """One more node of one CPU; of `gpus` it only says that it has them."""
        options = [f"--address={self.address}", "--num-cpus=1", f"--num-gpus={gpus}"]
        self.workers.append(self._stack.enter_context(_started(options, self.env)))
        return self.workers[-1]

    def lose(self, node: Node) -> None:
        """The node and all its workers, at once."""
        kill_tree(node.pid)
        node.wait()
        self.workers.remove(node)

    def run(self, *command: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A program of this environment, to its end."""
        return subprocess.run(
            [BIN / command[0], *command[1:]],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@contextlib.contextmanager
def cluster(env: Mapping[str, str]) -> Iterator[Cluster]:
    """A head with the jobs API, without workers. Nobody else's `ray.init()` finds it.

    Args:
        env: of all nodes and of whoever uses them, over this process's own.
    """
    port, dashboard = free_port(), free_port()
    options = ["--head", f"--port={port}", "--num-cpus=0", f"--dashboard-port={dashboard}"]
    options += [f"--ray-client-server-port={free_port()}"]
    env = {
        **os.environ,
        **env,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    with _started(options, env), contextlib.ExitStack() as stack:
        yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", env, _stack=stack)


@contextlib.contextmanager
def _started(options: list[str], env: Mapping[str, str]) -> Iterator[Node]:
    """`ray start`, once it says that it has; it ends with all its processes.

    One after the other: of two that start at once with the same address, Ray takes one for the other.
    Each with a folder of its own, as on a machine of its own: in a shared one a node that comes deletes the
    working directories of jobs that run.
    """
    temporary = tempfile.mkdtemp(prefix="ray-")  # short, for the sake of its sockets
    command = [BIN / "ray", "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    command += [f"--temp-dir={temporary}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", *options]
    own = {key: value for key, value in env.items() if key != "RAY_ADDRESS"}
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while b"Ray runtime started" not in (said := Path(log.name).read_bytes()):
                assert process.poll() is None and time.monotonic() < deadline, said.decode()
                time.sleep(0.1)
            yield process
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
                process.wait()
            shutil.rmtree(temporary, ignore_errors=True)


def kill_tree(pid: int) -> None:
    for each in [*descendants(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def titles(pid: int) -> dict[int, str]:
    """What the processes below `pid` call themselves: for Ray's workers, what they do."""
    found = {}
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            found[each] = Path(f"/proc/{each}/cmdline").read_text().split("\0")[0]
    return found


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
