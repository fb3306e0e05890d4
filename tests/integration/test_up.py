"""`vmr up`: a folder becomes searchable, and the next call does only what has changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from vmr_ray import cli
from vmr_ray.search import Searcher


def test_a_folder_is_followed(
    trained, world, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    folder, state = tmp_path / "videos", tmp_path / "state"
    folder.mkdir()
    first, second, third = sorted(world.videos.glob("*.mp4"))[:3]
    shutil.copy(first, folder)
    shutil.copy(second, folder)

    def up() -> str:
        words = [
            "up",
            folder,
            "--dir",
            state,
            "--checkpoint",
            trained.best,
            "--ask",
            "a ball spins",
            "--exit",
        ]
        monkeypatch.setattr(sys, "argv", ["vmr", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return capsys.readouterr().out

    def searchable() -> set[str]:
        (index,) = state.glob("index-*")
        return {row["video_id"] for row in Searcher(index).videos()}

    said = up()
    assert "2 embedded, 2 indexed, 0 gone" in said and first.name in said
    shutil.copy(third, folder)
    (folder / first.name).unlink()
    assert "1 embedded, 1 indexed, 1 gone" in up()
    assert searchable() == {second.name, third.name}
    shutil.copy(first, folder)  # it is back
    assert "1 embedded, 1 indexed, 0 gone" in up()
    assert searchable() == {first.name, second.name, third.name}
