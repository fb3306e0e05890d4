"""A long video is cut into windows, which are joined for fusion: every frame once, every window whole."""

from __future__ import annotations

import numpy as np
import pytest

from vmr_ray.model.windows import Window, cut_windows, join_windows, window_cores


def cut(video_id: str, frames: int, window: int = 32) -> list[Window]:
    """Windows of a video; the state of a frame is its number plus a thousandth of the window's number."""
    bounds = cut_windows(frames, window)
    windows = []
    for i, ((first, last), core) in enumerate(zip(bounds, window_cores(bounds), strict=True)):
        states = (np.arange(first, last) + i / 1000)[:, None]
        windows.append(Window(video_id, first, np.arange(first, last + 1) / 2, states, core))
    return windows


@pytest.mark.parametrize("frames", [5, 32, 33, 100, 500])
@pytest.mark.parametrize("max_frames", [1, 40, 64, 128, 10_000])
def test_every_window_lies_whole_in_one_stretch(frames: int, max_frames: int) -> None:
    windows = cut("v", frames)
    stretches = join_windows(windows, max_frames)
    assert sorted(i for stretch in stretches for i, _ in stretch.parts) == list(range(len(windows)))
    for stretch in stretches:
        assert len(stretch.states) <= max(max_frames, 32)
        for i, first in stretch.parts:
            window = windows[i]
            part = stretch.states[first : first + len(window.states), 0]
            assert part.astype(int).tolist() == list(range(window.first, window.first + len(window.states)))
            # What a window answers for is its own view.
            low, high = window.core
            assert (part[low:high] == window.states[low:high, 0]).all()


def test_no_frame_comes_twice_in_a_stretch() -> None:
    [stretch] = join_windows(cut("v", 500), 10_000)
    assert stretch.states[:, 0].astype(int).tolist() == list(range(500))


def test_only_neighbours_of_one_video_are_joined_in_whatever_order_they_come() -> None:
    a, b = cut("a", 100), cut("b", 40)
    stretches = join_windows([b[0], a[4], a[0], a[1], b[1]])
    assert [stretch.parts for stretch in stretches] == [[(2, 0), (3, 16)], [(1, 0)], [(0, 0), (4, 8)]]


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600, 1000, 3601])
def test_windows_cover_every_frame_and_any_short_moment_whole(n: int) -> None:
    cut = cut_windows(n, 256)
    assert cut[0][0] == 0 and cut[-1][1] == n
    assert all(last - first == min(n, 256) for first, last in cut)
    assert len(set(cut)) == len(cut)
    for start in range(0, max(1, n - 128)):
        assert any(first <= start and min(start + 128, n) <= last for first, last in cut)
