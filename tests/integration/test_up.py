"""`vmr up`: a folder becomes searchable, and the next call does only what has changed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_hf import save_tiny
from vmr_ray import cli
from vmr_ray.search.searcher import Searcher


@pytest.fixture
def up(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`vmr up` on tmp_path/videos, asked one thing; what it said."""

    def run(*model: object) -> str:
        words = ["up", tmp_path / "videos", "--dir", tmp_path / "state", *model]
        monkeypatch.setattr(sys, "argv", ["vmr", *map(str, words), "--ask", "a dog runs", "--exit"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    return run


def test_without_training(cluster, world, tmp_path: Path, up: Callable[..., str]):
    folder = tmp_path / "videos"
    folder.mkdir()
    video = min(world.videos.glob("*.mp4"))
    shutil.copy(video, folder)
    said = up("--encoder", f"hf:{save_tiny(tmp_path / 'clip', 'clip')}")
    assert "1 embedded, 1 indexed" in said and video.name in said


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
    shutil.copy(first, folder)  # it is back
    assert "1 embedded, 1 indexed, 0 gone" in up(*model)
    assert searchable() == {first.name, second.name, third.name}
