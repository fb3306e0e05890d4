"""Windows of a video joined for fusion: every frame once, every window whole."""

from __future__ import annotations

import numpy as np
import pytest

from vmr_ray.model.predictor import Window, join
from vmr_ray.model.windows import cores, windows


def cut(video_id: str, frames: int, window: int = 32) -> list[Window]:
    """A state tells the frame it is of and, behind the point, the window it comes from."""
    places = windows(frames, window)
    found = []
    for i, ((first, last), core) in enumerate(zip(places, cores(places), strict=True)):
        states = (np.arange(first, last) + i / 1000)[:, None]
        found.append(Window(video_id, first, np.arange(first, last + 1) / 2, states, core))
    return found


@pytest.mark.parametrize("frames", [5, 32, 33, 100, 500])
@pytest.mark.parametrize("most", [1, 40, 64, 128, 10_000])
def test_every_window_lies_whole_in_one_run(frames: int, most: int) -> None:
    seen = cut("v", frames)
    runs = join(seen, most)
    assert sorted(i for run in runs for i, _ in run.parts) == list(range(len(seen)))
    for run in runs:
        assert len(run.states) <= max(most, 32)
        for i, first in run.parts:
            window = seen[i]
            part = run.states[first : first + len(window.states), 0]
            assert part.astype(int).tolist() == list(range(window.first, window.first + len(window.states)))
            # What a window answers for is its own view.
            low, high = window.core
            assert (part[low:high] == window.states[low:high, 0]).all()


def test_no_frame_comes_twice_in_a_run() -> None:
    [run] = join(cut("v", 500), 10_000)
    assert run.states[:, 0].astype(int).tolist() == list(range(500))


def test_only_neighbours_of_one_video_are_joined_in_whatever_order_they_come() -> None:
    a, b = cut("a", 100), cut("b", 40)
    runs = join([b[0], a[4], a[0], a[1], b[1]])
    assert [run.parts for run in runs] == [[(2, 0), (3, 16)], [(1, 0)], [(0, 0), (4, 8)]]
