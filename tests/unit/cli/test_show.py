"""What a search shows: timelines, tables, notebooks; clips and players."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest
from rich.console import Console

from tests.videos import write_video
from vmr_ray.cli.app import _verbose_first
from vmr_ray.cli.play import cut, play
from vmr_ray.cli.search import filters
from vmr_ray.cli.show import moments_table, print_result, timeline
from vmr_ray.errors import VmrError
from vmr_ray.schema import Moment
from vmr_ray.search.result import timecode
from vmr_ray.search.searcher import SearchResult

HOSTILE = '<img src=x onerror="alert(1)">&.mp4'
FOUND = SearchResult(
    HOSTILE, [Moment(HOSTILE, 30, 60, 2.5), Moment("[red]b.mp4", 0, 1, 1.0)], durations={HOSTILE: 120.0}
)


@pytest.mark.parametrize(
    ("start", "end", "duration", "bar"),
    [
        (0, 10, 10, "━━━━━━━━"),
        (5, 10, 10, "────━━━━"),
        (2.5, 5, 10, "──━━────"),
        (9.99, 10, 10, "───────━"),  # short, but visible
        (5, 20, 10, "──━━━━━━"),  # the container gives a wrong duration
        (0, 0, 0, "━───────"),
    ],
)
def test_timeline(start: float, end: float, duration: float, bar: str):
    assert timeline(start, end, duration, 8) == bar


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_keeps_to_the_terminal(width: int):
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as printed:
        console.print(moments_table(FOUND, width))
    lines = printed.get().splitlines()
    assert max(map(len, lines)) <= width
    assert ("━" * 3 in printed.get().replace("┏", "")) and "0:30.0" in printed.get()
    assert ("place in the video" in printed.get()) == (width >= 80)
    assert "[red]" in printed.get()


def test_piped_there_are_columns_only():
    console = Console(width=120, color_system=None)
    with console.capture() as printed:
        console.print(moments_table(FOUND, 120, styled=False))
    assert len(printed.get().splitlines()) == 3
    assert not set("━─│┃") & set(printed.get())


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.46, "0:03.5"), (83.4, "1:23.4"), (59.96, "1:00.0"), (3661, "1:01:01.0")]
)
def test_timecode(seconds: float, text: str):
    assert timecode(seconds) == text


def test_html_escapes_and_places():
    page = FOUND._repr_html_()
    assert "<img" not in page and "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;.mp4" in page
    assert '<rect x="50.0" width="50.0"' in page
    assert page.count("<tr>") == 3


def test_text_has_a_line_a_moment():
    assert str(FOUND).splitlines()[2].split() == ["2", "[red]b.mp4", "0:00.0", "-", "0:01.0", "1.00"]


def test_importing_the_library_is_light():
    code = "import sys, vmr_ray; print([m for m in ('torch', 'ray', 'lancedb', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_searcher_needs_no_ray():
    code = "import sys; from vmr_ray import Searcher; print(Searcher.__name__, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Searcher", "False"]


def test_filters_keep_types():
    assert filters(["year=2024", "year=2025", 'n="7"', "camera=north", "live=true"]) == {
        "year": [2024, 2025],
        "n": ["7"],
        "camera": ["north"],
        "live": [True],
    }
    with pytest.raises(VmrError, match="--filter north: give key=value"):
        filters(["north"])


def test_verbose_may_stand_anywhere():
    assert _verbose_first(["embed", "-v", "x"]) == ["--verbose", "embed", "x"]
    assert _verbose_first(["search", "--", "-v"]) == ["search", "--", "-v"]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "v.mp4"
    write_video(path)
    return path


def test_a_clip_has_the_moment(video: Path, tmp_path: Path):
    cut("v.mp4", str(video), 0.5, 1.0, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert float(container.duration or 0) / av.time_base == pytest.approx(0.5, abs=0.15)


def test_a_moved_video_is_named(tmp_path: Path):
    with pytest.raises(VmrError, match=r"gone\.mp4 has been moved or deleted"):
        cut("gone.mp4", str(tmp_path / "gone.mp4"), 0, 1, tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("name", "options"),
    [("mpv", "--start=0.500 --end=1.000"), ("vlc", "--stop-time=1.000"), ("ffplay", "-ss 0.500 -t 0.500")],
)
def test_players_get_start_and_end(
    name: str, options: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tool = tmp_path / "bin" / name
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/options\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    play("v.mp4", str(video), 0.5, 1.0)
    called_with = (tmp_path / "options").read_text()
    assert options in called_with and str(video) in called_with


def test_nothing_to_play_with(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmrError, match="nothing here can play the moment: install mpv, vlc or ffplay"):
        play("v.mp4", str(video), 0, 1)


def test_nothing_found_stands_above_what_is_nearest():
    nearest = [Moment("a.mp4", 1, 2, 0.5, 0.1)]
    for moments, found, expected in (
        (SearchResult("?", [], found=False, nearest=nearest), 1, ["nothing found; nearest anyway:", "10 %"]),
        (SearchResult("?", [], found=False), 0, ["nothing found"]),
    ):
        console = Console(width=80, color_system=None)
        with console.capture() as printed:
            print_result(console, moments)
        assert all(text in printed.get() for text in expected)
        assert printed.get().count("a.mp4") == found
    assert "probable" in shown(nearest) and "score" in shown([Moment("a.mp4", 1, 2, 0.5)])


def shown(moments: list[Moment]) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as printed:
        console.print(moments_table(SearchResult("?", moments), 80))
    return printed.get()
