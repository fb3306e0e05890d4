"""`vmr demo`: both acts, the second one on a world of a few videos."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.common.processes import free_port
from vmr_ray.demo.photos import VIDEOS
from vmr_ray.demo.run import search_photos, train_on_drawn_world
from vmr_ray.search.searcher import Searcher
from vmr_ray.serve.local import withdraw


def test_both_acts(cluster, small, tmp_path: Path):
    text = io.StringIO()
    out = Console(file=text, width=80)
    index = search_photos(out, tmp_path / "photos", free_port())
    withdraw()  # as the demo does at its end, when nothing is served any more
    train_on_drawn_world(out, tmp_path, train_videos=3, test_videos=2, config=small)

    said = text.getvalue()
    assert all(len(line) <= 80 for line in said.splitlines())
    assert said.index("no training") < said.index("best answer right") < said.index("R@1 IoU=0.5")
    # Act one: what is searched is `everyday`, and a plain case is answered right.
    searcher = Searcher(index)
    assert searcher.predictor.info.text_encoder == "sentence:everyday"
    assert {row["video_id"] for row in searcher.videos()} <= VIDEOS.keys()
    assert searcher.search("a big orange flower in a garden", 1).moments[0].video_id == "travel.mp4"
    # Act two leaves a model, an index of it and the metrics.
    assert len(Searcher(tmp_path / "index").videos()) == 5
    assert (tmp_path / "run" / "best" / "checkpoint.json").is_file()
    assert (tmp_path / "report" / "metrics.json").is_file()


def test_workers_of_the_demo_have_its_own_priority():
    """Ray's would be 15 lower, and stand still next to programs that keep the cores busy."""
    code = """
import os
from vmr_ray.demo.run import start_ray
start_ray()
import ray
print(ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote()) - os.nice(0))
"""
    env = {key: value for key, value in os.environ.items() if key != "RAY_worker_niceness"}
    env |= {"RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr
