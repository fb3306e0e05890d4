"""Killed at every step of adding, updating and deleting: a video is as before or as after, in searches and in
the list alike, and the next call completes what was begun.

As a program, this file forks a child for each write of each of `OPERATIONS`, to be killed before that write.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.builders import IndexRows, checkpoint_info, index_rows
from tests.disks import enlarge, small_disk
from vmr_ray.config import IndexConfig
from vmr_ray.encoders.imported import write_states
from vmr_ray.errors import FullDiskError, VmrError
from vmr_ray.model.checkpoint import save_checkpoint
from vmr_ray.search.result import SearchRequest
from vmr_ray.search.searcher import Searcher
from vmr_ray.search.tables import IndexTables, file_version

TOKENS = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float16)
KEPT, OLD = index_rows("kept", "1", 0, "north"), index_rows("a", "1", 100, "north")


def write(video: IndexRows) -> Callable[[IndexTables], None]:
    """What `build_index` does, once the rows are there."""

    def call(tables: IndexTables) -> None:
        tables.sweep()
        tables.add(*video)

    return call


def delete(tables: IndexTables) -> None:
    tables.delete_videos(["a"])


def interrupted_delete_and(then: Callable[[IndexTables], None]) -> Callable[[IndexTables], None]:
    def call(tables: IndexTables) -> None:
        if not tables.deleted_ids():
            tables.deleted.add(pa.table({"video_id": ["a"]}))
        then(tables)

    return call


# By name: the rows of the video before and after, and what is called.
OPERATIONS: dict[str, tuple[IndexRows | None, IndexRows | None, Callable[[IndexTables], None]]] = {
    "add": (None, OLD, write(OLD)),
    "update the file": (OLD, index_rows("a", "2", 200, "north"), write(index_rows("a", "2", 200, "north"))),
    "update metadata": (
        OLD,
        index_rows("a", "1.1", 100, "south"),
        write(index_rows("a", "1.1", 100, "south")),
    ),
    "delete": (OLD, None, delete),
    "complete a delete": (OLD, None, interrupted_delete_and(IndexTables.sweep)),
}


class Mortal:
    """A table whose process is killed before its `left`-th write."""

    left = -1

    def __init__(self, table: Any):
        self.table = table

    def __getattr__(self, name: str) -> Any:
        if name in ("add", "delete", "merge_insert"):
            if Mortal.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            Mortal.left -= 1
        return getattr(self.table, name)


def kill_at_every_step(folder: Path, operation: str) -> None:
    """Copy FOLDER/index to FOLDER/0, FOLDER/1, ... and let a child die at that step, but for the last one."""
    import lancedb  # noqa: F401  # once, and not in every child

    warnings.simplefilter("ignore", RuntimeWarning)  # LanceDB's, about forks
    for step in range(100):
        index = str(folder / str(step))
        shutil.copytree(folder / "index", index)
        pid = os.fork()
        if not pid:
            tables = IndexTables.open(index)
            mortal = IndexTables(
                *map(Mortal, (tables.videos, tables.windows, tables.segments, tables.deleted))
            )
            Mortal.left = step
            OPERATIONS[operation][2](mortal)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several gain nothing on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shown(searcher: Searcher) -> tuple[Any, ...] | None:
    """The version of the video `a`, if it is listed; checks that searches find just this version."""
    listed = {row["video_id"]: row for row in searcher.videos()}
    assert set(listed) <= {"a", "kept"} and listed["kept"]["duration"] == 8
    cameras = (None, "north", "south")
    requests = [SearchRequest("?", 50, filter={"camera": c} if c else None) for c in cameras]
    *answers, named = searcher.search_many([*requests, SearchRequest("?", video_ids=["a"])], [TOKENS] * 4)
    for camera, answer in zip(cameras, answers, strict=True):
        assert not isinstance(answer, VmrError)
        starts = sorted(m.start for m in answer.moments if m.video_id == "a")
        matches = "a" in listed and camera in (None, listed["a"]["metadata"]["camera"])
        assert bool(starts) == matches, (camera, listed)
        if matches:
            first = listed["a"]["duration"] - 8
            assert first <= starts[0] and starts[-1] < first + 8
        assert camera == "south" or any(m.video_id == "kept" for m in answer.moments)
    assert isinstance(named, VmrError) == ("a" not in listed)
    return (listed["a"]["version"], listed["a"]["metadata"]["camera"]) if "a" in listed else None


def expected(video: IndexRows | None) -> tuple[Any, ...] | None:
    if video is None:
        return None
    (row,) = video[0].to_pylist()
    return file_version(row["version"]), json.loads(row["metadata"])["camera"]


def row_counts(tables: IndexTables) -> tuple[int, ...]:
    return tuple(table.count_rows() for table in (tables.videos, tables.windows, tables.segments))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of `OPERATIONS`, with the index as each kill has left it: 0, 1, ..."""
    root = tmp_path_factory.mktemp("killed")
    text_encoder = f"imported:{root}/states"
    write_states(f"{root}/states", 6, iter([("?", TOKENS)]))
    info = checkpoint_info().model_copy(update={"text_encoder": text_encoder})
    for operation, (before, _, _) in OPERATIONS.items():
        source = root / operation / "index"
        save_checkpoint(source / "checkpoint", info.network().state_dict(), info)
        tables = IndexTables.create(str(source), info.dim)
        for video in filter(None, (KEPT, before)):
            tables.add(*video)
    program = [sys.executable, "-m", __name__, root]
    done = subprocess.run(program, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_step(killed: Path, operation: str):
    before, after, call = OPERATIONS[operation]
    steps = sorted(path for path in (killed / operation).iterdir() if path.name != "index")
    assert 4 <= len(steps) < 10
    states = []
    for index in steps:
        searcher = Searcher(index)
        states.append(shown(searcher))
        searcher.tables.sweep()
        listed = len(searcher.tables.video_ids())
        assert row_counts(searcher.tables) == (listed, 2 * listed, 2 * listed), "nothing is left over"
        if states[-1] != expected(after) or operation == "delete":  # a second delete is no mistake
            call(searcher.tables)
        assert shown(searcher) == expected(after)
        searcher.tables.delete_videos(["kept"] if after is None else ["a", "kept"])
        assert row_counts(searcher.tables) == (0, 0, 0)
    # There is one step at which everything changes.
    change = states.index(expected(after))
    assert change > 0
    assert states == [expected(before)] * change + [expected(after)] * (len(steps) - change)


def test_a_disk_that_is_full_at_any_write(tmp_path: Path):
    """The smallest has no room for the tables, the largest for everything."""
    steps, failed = ("create", "add", "update", "delete", "optimize"), []
    for kilobytes in range(16, 320, 32):
        done: list[str] = []
        with small_disk(tmp_path, kilobytes):
            index = str(tmp_path / "index")
            try:
                for step in steps:
                    write_step(index, step)
                    done.append(step)
            except FullDiskError as error:
                assert str(error).startswith(f"cannot write {index} (its disk is full): make room")
                failed.append(steps[len(done)])
            enlarge(tmp_path, 4000)
            for step in steps[len(done) :]:
                write_step(index, step)
            tables = IndexTables.open(index)
            assert row_counts(tables) == (1, 2, 2)
            assert tables.video_ids() == ["kept"] and tables.deleted_ids() == {"a"}
    assert set(failed) == set(steps)


def write_step(index: str, step: str) -> None:
    tables = IndexTables.create(index, checkpoint_info().dim)
    if step == "add":
        for video in (KEPT, OLD):
            if not tables.has_video(video[0]["video_id"][0].as_py()):
                write(video)(tables)
    elif step == "update":
        OPERATIONS["update the file"][2](tables)
    elif step == "optimize":
        tables.optimize(IndexConfig())
    elif step == "delete":
        delete(tables)


if __name__ == "__main__":
    for name in OPERATIONS:
        kill_at_every_step(Path(sys.argv[1]) / name, name)
