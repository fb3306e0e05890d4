"""The processes of this machine, read from /proc: who started whom, their memory, their end."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from benchmarks.common.timing import repeatedly


def parents() -> dict[int, int]:
    """Process id -> id of the process that started it, of every process here."""
    started: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):  # it ended meanwhile
            started[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return started


def descendants(root: int) -> list[int]:
    """Every process that `root` started, directly or not."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    below = list(children.get(root, []))
    for pid in below:  # grows meanwhile
        below += children.get(pid, [])
    return below


def command_line(pid: int) -> str:
    r"""The words of a process's command line, a "\0" after each; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def title(pid: int) -> str:
    """What a process calls itself: for a Ray worker, what it does."""
    return command_line(pid).partition("\0")[0]


def named(root: int, name: str) -> list[int]:
    """The processes that `root` started and that have `name` in their command line."""
    return [pid for pid in descendants(root) if name in command_line(pid)]


def megabytes(pid: int) -> float:
    """A process's memory without the object store's shared pages; 0 if it has ended."""
    size = 0.0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssFile:")):
                size += int(line.split()[1]) / 1024
    return size


def core_seconds(pid: int) -> float:
    """Seconds of a core that a process has used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_tree(pid: int) -> None:
    """End a process and all that it started, at once."""
    for each in [*descendants(pid), pid]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class PeakMemory:
    """Peak megabytes while the block runs, without the object store's shared pages.

    `worker` is that of the largest Ray worker together with its children (a decoding worker and its
    decoder), `total` that of this process and all that it started.
    """

    def __init__(self, seconds: float = 0.5):
        self.worker = self.total = 0.0
        self._seconds = seconds
        self._stack = ExitStack()

    def __enter__(self) -> PeakMemory:
        self._stack.enter_context(repeatedly(self._sample, self._seconds))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _sample(self) -> None:
        started = parents()
        sizes = {pid: megabytes(pid) for pid in (os.getpid(), *descendants(os.getpid()))}
        self.total = max(self.total, sum(sizes.values()))
        for pid, size in sizes.items():
            if title(pid).startswith("ray::"):
                children = sum(sizes[child] for child in sizes if started.get(child) == pid)
                self.worker = max(self.worker, size + children)
