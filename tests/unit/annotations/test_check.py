"""`vmr annotations check`: what it reports about a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vmr_ray import cli
from vmr_ray.importing.features import import_features

FIXTURES = Path(__file__).parents[2] / "fixtures" / "annotations"
GOOD = {"video": "a", "query": "it waits", "start": 1.0, "end": 2.0}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `vmr annotations check ARGS`; returns (exit code, stdout, stderr)."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vmr", "annotations", "check", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_usable_file(check, tmp_path: Path):
    code, out, err = check(write(tmp_path / "a.jsonl", GOOD, GOOD | {"end": 9.0, "duration": 5.0}))
    assert code == 0 and "2 rows, 2 usable, of which 1 were clipped; 0 dropped; 1 videos" in out
    assert err.count("\n") == 1 and "clipped line 2: end 9.0 is past" in err


def test_every_bad_row_has_its_line_and_fix(check):
    code, out, err = check(FIXTURES / "broken.csv")
    assert code == 1 and "13 rows, 2 usable" in out and "11 dropped" in out
    assert "dropped line 3: start 9.0 is not before end 4.0: swap them" in err
    assert "clipped line 9: end 75.0 is past the video's duration 60.0" in err


def test_the_first_twenty(check, tmp_path: Path):
    code, _, err = check(write(tmp_path / "a.jsonl", GOOD, *[GOOD | {"start": 3.0}] * 25))
    assert code == 1 and err.count("swap them") == 20 and "dropped and 5 more" in err
    assert "line 21:" in err and "line 22:" not in err


@pytest.mark.parametrize("name", ["charades_sta.txt", "activitynet.json", "qvhighlights.jsonl", "vmr.csv"])
def test_every_format_as_json(check, name: str):
    code, out, _ = check(FIXTURES / name, "--json")
    found = json.loads(out)
    assert code == (1 if found["dropped"] else 0)
    assert found["rows"] == found["kept"] + sum(found["dropped"].values())
    assert all(problem["where"] and problem["reason"] for problem in found["problems"])


def test_unreadable(check, tmp_path: Path):
    code, _, err = check(tmp_path / "gone.csv")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_videos_without_features(check, tmp_path: Path):
    (tmp_path / "src").mkdir()
    np.save(tmp_path / "src" / "a.npy", np.zeros((3, 4), np.float32))
    import_features([tmp_path / "src"], tmp_path / "store", 1)
    path = write(tmp_path / "a.jsonl", GOOD, GOOD | {"video": "b"})
    code, out, err = check(path, "--features", tmp_path / "store")
    assert code == 0 and "1 of 2 videos are in" in out and "without features b" in err
    found = json.loads(check(path, "--features", tmp_path / "store", "--json")[1])
    assert (found["with_features"], found["without_features"]) == (["a"], ["b"])
    code, _, err = check(path, "--features", tmp_path / "none")
    assert code == 2 and "no feature store at" in err
