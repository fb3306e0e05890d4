"""The memory of this process and of all that it started, sampled while something runs."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType


def _status(pid: str) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


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
            all_ = {p.name: _status(p.name) for p in Path("/proc").glob("[0-9]*")}
            children: dict[str, list[str]] = {}
            for pid, status in all_.items():
                children.setdefault(status.get("PPid", ""), []).append(pid)
            below = [self._root]
            for pid in below:
                below += children.get(pid, [])
            size = {
                pid: sum(int(all_[pid].get(key, "0 kB").split()[0]) for key in ("RssAnon", "RssFile")) / 1024
                for pid in below
                if pid in all_
            }
            self.total = max(self.total, sum(size.values()))
            workers = [p for p in size if all_[p].get("Name", "").startswith("ray::")]
            for pid in workers:
                self.worker = max(self.worker, size[pid] + sum(size.get(c, 0) for c in children.get(pid, [])))
