from __future__ import annotations

import pytest

from vmr_ray.cli.common import show_irregular
from vmr_ray.schema import Partial, Spliced


def test_what_is_odd_about_a_video_is_named_with_its_place(capsys: pytest.CaptureFixture[str]):
    show_irregular([Partial("a.mp4", "it ends early")], [Spliced("b.ts", [2.0, 7.254])])
    said = " ".join(capsys.readouterr().err.split())
    assert "partial a.mp4: it ends early; its readable frames are embedded" in said
    assert "spliced b.ts: its clock jumps at 2.00 s, 7.25 s; times go on without a gap" in said


def test_nothing_odd_is_not_mentioned(capsys: pytest.CaptureFixture[str]):
    show_irregular([], [])
    assert capsys.readouterr().err == ""
