"""Ray nodes as processes of this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common.processes import free_port, kill_tree

BIN = Path(sys.executable).parent
Node = subprocess.Popen[bytes]


@contextmanager
def ray_node(options: Sequence[str], env: Mapping[str, str], folder: Path | None = None) -> Iterator[Node]:
    """`ray start`, once it has started; at the end the node is killed with all its processes.

    Start nodes one after the other: Ray takes two with the same address that start at once for one. Each has
    a folder of its own, as on a machine of its own, because in a shared one a node that starts deletes the
    working directories of jobs that run.

    Args:
        options: of `ray start`.
        env: of the node; RAY_ADDRESS is left out.
        folder: that the node is started in; default: this process's.

    Raises:
        RuntimeError: it does not start within two minutes; the message is its log.
    """
    temporary = tempfile.mkdtemp(prefix="ray-")  # short, because a socket's path may not be long
    command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--temp-dir={temporary}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", *options]
    own = {key: value for key, value in env.items() if key != "RAY_ADDRESS"}
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, cwd=folder, env=own, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in (text := Path(log.name).read_text(errors="replace")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the node does not start: {text}")
                time.sleep(0.1)
            yield process
        finally:
            if process.poll() is None:
                kill_tree(process.pid)
                process.wait()
            shutil.rmtree(temporary, ignore_errors=True)
