from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from benchmarks.common.media import FPS, render, repeat
from benchmarks.common.output import WIDTH, print_table, run_command, write_figures
from benchmarks.common.processes import PeakMemory, descendants, kill_tree, megabytes, named, title
from benchmarks.common.timing import median_ms, wait_until

ROOT = Path(__file__).parents[3]
# A process that starts another one and keeps 64 MB.
PARENT = (
    "import subprocess, sys, time; data = bytearray(64 << 20);"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600) # a-child']); time.sleep(600)"
)


def test_a_tree_of_processes_is_seen_and_ended() -> None:
    with PeakMemory(seconds=0.05) as memory:
        process = subprocess.Popen([sys.executable, "-c", PARENT])
        try:
            wait_until(lambda: bool(named(process.pid, "# a-child")))
            (child,) = descendants(process.pid)
            assert {process.pid, child} <= set(descendants(os.getpid()))
            assert title(child) == sys.executable
            wait_until(lambda: megabytes(process.pid) > 64)
            wait_until(lambda: memory.total > megabytes(os.getpid()) + 64)
        finally:
            kill_tree(process.pid)
            process.wait()
    assert memory.worker == 0, "none of them is a Ray worker"
    wait_until(lambda: not title(child))
    assert (title(process.pid), megabytes(process.pid), descendants(process.pid)) == ("", 0, [])


def test_waiting_ends() -> None:
    with pytest.raises(TimeoutError, match=r"not within 0.05 s"):
        wait_until(lambda: False, seconds=0.05, every=0.01)


def test_the_first_call_does_not_count() -> None:
    calls: list[int] = []
    assert median_ms(lambda: calls.append(1), 3) >= 0
    assert len(calls) == 4


def test_a_repeated_video_is_as_long_as_all_its_copies(tmp_path: Path) -> None:
    one = render(tmp_path / "one.mp4", (64, 48), 2, gop_seconds=1)
    three = repeat(one, tmp_path / "three.mp4", 3)
    with av.open(str(three)) as container:
        frames = list(container.decode(video=0))
    assert [round(frame.time * FPS) for frame in frames] == list(range(3 * 2 * FPS))
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == list(range(0, 3 * 2 * FPS, FPS))


def test_a_table_is_no_wider_than_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a title", ("", "one", "two"), [("a name " * 20, 1.5, "x"), ("b", 2)])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    assert printed.count("name") == 20, "nothing is cut off"


def test_figures_are_written_if_a_file_is_named(tmp_path: Path) -> None:
    write_figures(None, {"a": 1.0})
    write_figures(tmp_path / "new" / "figures.json", {"a": 1.5})
    assert (tmp_path / "new" / "figures.json").read_text().split() == ["{", '"a":', "1.5", "}"]


def test_a_benchmark_is_run_as_a_module() -> None:
    command = [sys.executable, "-m", "benchmarks.slideshows", "no-such-photos", "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    sentence = "error: no-such-photos does not exist: name a folder of images or a Parquet file\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["accuracy", "--only", "fulll"], "--only fulll: choose from full, defaults, no_membership"),
        (["accuracy", "--set", "train.lrr=1"], "--set: unknown key 'train.lrr'"),
        (["serve", "--index", "index"], "give both --index and --queries, or neither"),
        (["slideshows", "photos", "out", "--kind", "cube"], "--kind cube: choose from slides, glide"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as ended:
        run_command(importlib.import_module(f"benchmarks.{words[0]}").main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith(f"error: {sentence}")
    assert printed.count("\n") == 1
