"""Ray nodes in processes of their own, several on one machine, and their end."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.nodes import BIN, Node, ray_node
from benchmarks.common.processes import descendants, free_port, kill_tree, title

ROOT = Path(__file__).parents[1]
IP = "--node-ip-address=127.0.0.1"


@dataclass
class Cluster:
    """A head that takes no work, as on a cloud, and the workers that have joined it."""

    address: str
    dashboard: str
    env: dict[str, str]  # of processes that use it
    workers: list[Node] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def join(self, gpus: int = 0) -> Node:
        """One more node of one CPU; of `gpus` it only says that it has them."""
        options = [IP, f"--address={self.address}", "--num-cpus=1", f"--num-gpus={gpus}"]
        self.workers.append(self._stack.enter_context(ray_node(options, self.env, ROOT)))
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
        env: of all nodes and of the processes that use them, over this process's own.
    """
    port, dashboard = free_port(), free_port()
    options = [IP, "--head", f"--port={port}", "--num-cpus=0", f"--dashboard-port={dashboard}"]
    options += [f"--ray-client-server-port={free_port()}"]
    env = {
        **os.environ,
        **env,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    with ray_node(options, env, ROOT), contextlib.ExitStack() as stack:
        yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", env, _stack=stack)


def titles(pid: int) -> dict[int, str]:
    """What the processes below `pid` call themselves: for Ray's workers, what they do."""
    return {each: title(each) for each in descendants(pid)}
