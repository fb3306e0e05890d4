"""`vmr up`: a folder becomes searchable, and the next call does only what has changed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_hf import save_tiny
from vmr_ray import cli
from vmr_ray.errors import VmrError
from vmr_ray.search.searcher import Searcher
from vmr_ray.search.tables import IndexTables
from vmr_ray.workflows import up as workflow


@pytest.fixture
def up(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`vmr up` on tmp_path/videos, with one query; returns what it printed."""

    def run(*model: object) -> str:
        words = ["up", tmp_path / "videos", "--dir", tmp_path / "state", *model]
        monkeypatch.setattr(sys, "argv", ["vmr", *map(str, words), "--ask", "a dog runs", "--exit"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def test_without_training(cluster, world, tmp_path: Path, up: Callable[..., str]):
    folder = tmp_path / "videos"
    folder.mkdir()
    video = min(world.videos.glob("*.mp4"))
    shutil.copy(video, folder)
    (folder / "notes.txt").write_text("milk")
    said = up("--encoder", f"hf:{save_tiny(tmp_path / 'clip', 'clip')}")
    assert "1 embedded, 1 indexed" in said and video.name in said
    assert "left out not the name of a video: notes.txt\n" in said


def test_without_naming_a_model(cluster, world, tmp_path: Path, up: Callable[..., str], monkeypatch):
    # A demo's model lies in the working directory: it is not taken.
    (tmp_path / "demo" / "run" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    folder.mkdir()
    videos = sorted(world.videos.glob("*.mp4"))[:2]
    for video in videos:
        shutil.copy(video, folder)
    said = up()
    (line,) = (line for line in said.splitlines() if "everyday" in line)
    assert "--encoder clip" in line and "--checkpoint" in line
    assert "2 embedded, 2 indexed" in said and any(video.name in said for video in videos)
    # The same model by its name, and from Python.
    assert "0 embedded, 0 indexed" in up("--encoder", "everyday")
    searcher = Searcher(workflow.up(folder, state=tmp_path / "state").index)
    assert searcher.predictor.info.text_encoder == "sentence:everyday"
    assert {moment.video_id for moment in searcher.search("a bird flies").moments} <= {v.name for v in videos}


def test_a_folder_is_followed(trained, world, tmp_path: Path, up: Callable[..., str]):
    folder, state = tmp_path / "videos", tmp_path / "state"
    folder.mkdir()
    first, second, third = sorted(world.videos.glob("*.mp4"))[:3]
    shutil.copy(first, folder)
    shutil.copy(second, folder)
    model = ("--checkpoint", trained.best)

    def searchable() -> set[str]:
        (index,) = state.glob("index-*")
        return {row["video_id"] for row in Searcher(index).videos()}

    said = up(*model)
    assert "2 embedded, 2 indexed, 0 gone" in said and first.name in said
    shutil.copy(third, folder)
    (folder / first.name).unlink()
    assert "1 embedded, 1 indexed, 1 gone" in up(*model)
    assert searchable() == {second.name, third.name}
    shutil.copy(first, folder)  # it has come back
    assert "1 embedded, 1 indexed, 0 gone" in up(*model)
    assert searchable() == {first.name, second.name, third.name}


def test_it_is_callable_without_the_command_line(trained, world, tmp_path: Path):
    folder, state = tmp_path / "videos", tmp_path / "state"
    folder.mkdir()
    first, second = sorted(world.videos.glob("*.mp4"))[:2]
    shutil.copy(first, folder)
    shutil.copy(second, folder)
    (folder / "bad.mp4").write_text("not a video")
    done = []
    result = workflow.up(
        folder, trained.best, state=state, index_progress=lambda n, todo: done.append((n, todo))
    )
    assert (result.videos, result.embedded, result.indexed, result.forgotten) == (2, 2, 2, 0)
    assert [row.video_id for row in result.quarantined] == ["bad.mp4"] and done[-1] == (2, 2)
    assert Path(result.index).parent == Path(result.features).parent == state
    assert len(Searcher(result.index).search("a dog runs").moments) > 0

    # A file that leaves the folder is forgotten; one that was uploaded to the service stays.
    tables = IndexTables.open(result.index)
    (row,) = tables.read_videos([second.name])
    uploaded = {**row, "video_id": "uploaded.mp4", "uri": f"{result.index}/ingest/uploads/uploaded.mp4"}
    tables.videos.add([uploaded])
    (folder / second.name).unlink()
    result = workflow.up(folder, trained.best, state=state)
    assert (result.videos, result.embedded, result.indexed, result.forgotten) == (2, 0, 0, 1)
    assert set(tables.video_ids()) == {first.name, "uploaded.mp4"}

    # A video that was deleted through the service stays deleted, until its file has been gone.
    shutil.copy(second, folder)
    assert workflow.up(folder, trained.best, state=state).indexed == 1
    tables.delete_videos([second.name])
    result = workflow.up(folder, trained.best, state=state)
    assert (result.videos, result.indexed, result.forgotten, result.deleted) == (2, 0, 0, 1)
    (folder / second.name).unlink()
    workflow.up(folder, trained.best, state=state)
    shutil.copy(second, folder)
    result = workflow.up(folder, trained.best, state=state)
    assert (result.videos, result.indexed, result.deleted) == (3, 1, 0)


def test_one_model_at_most(tmp_path: Path):
    with pytest.raises(VmrError, match="there is no folder"):
        workflow.up(tmp_path / "gone", "run/best")
    with pytest.raises(VmrError, match="give either a checkpoint or an encoder"):
        workflow.up(tmp_path, "run/best", "everyday")
    with pytest.raises(
        VmrError, match="resnet cannot search untrained: .* everyday, everyday-multilingual, clip,"
    ):
        workflow.up(tmp_path, encoder="resnet")
    with pytest.raises(VmrError, match="holds no video|no video"):
        workflow.up(tmp_path)
