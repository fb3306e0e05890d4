"""The memory of this process and of all that it started, sampled while something runs."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType


def _status(pid: str) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def started_by(root: int | str) -> dict[str, dict[str, str]]:
    """Every process that `root` started, directly or not: its id -> what /proc says of it."""
    all_ = {p.name: _status(p.name) for p in Path("/proc").glob("[0-9]*")}
    children: dict[str, list[str]] = {}
    for pid, status in all_.items():
        children.setdefault(status.get("PPid", ""), []).append(pid)
    found = list(children.get(str(root), []))
    for pid in found:
        found += children.get(pid, [])
    return {pid: all_[pid] for pid in found}


def megabytes(status: dict[str, str]) -> float:
    """Memory of a process without the object store's shared pages."""
    return sum(int(status.get(key, "0 kB").split()[0]) for key in ("RssAnon", "RssFile")) / 1024


def named(root: int, name: str) -> list[int]:
    """The processes that `root` started and whose command line has `name` in it."""
    found = []
    for pid in started_by(root):
        with suppress(OSError):
            if name in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
    return found


class PeakMemory:
    """Peak megabytes, without the object store's shared pages.

    `worker` is that of the largest process together with its children (a decoding worker and its
    decoder), Ray's own daemons left out; `total` that of all processes.
    """

    def __init__(self, root: int, seconds: float = 0.5):
        self._root, self._seconds = str(root), seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.worker = self.total = 0.0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._seconds):
            found = {self._root: _status(self._root), **started_by(self._root)}
            size = {pid: megabytes(status) for pid, status in found.items()}
            self.total = max(self.total, sum(size.values()))
            for pid, status in found.items():
                if status.get("Name", "").startswith("ray::"):
                    own = sum(size[child] for child in found if found[child].get("PPid") == pid)
                    self.worker = max(self.worker, size[pid] + own)
