"""docs/tutorial.md and docs/python.md are run as they stand: their blocks, in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "RAY_ADDRESS": "local",
}


def run_blocks(page: str, folder: Path) -> str:
    """Run the `sh` and `python` blocks of a page in `folder`; returns what they printed."""
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert len(blocks) >= 5
    printed = ""
    for kind, block in blocks:
        command = ["bash", "-euc", block] if kind == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(
            command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return printed


def test_the_tutorial_and_the_python_page_work(tmp_path: Path):
    run_blocks("docs/tutorial.md", tmp_path)
    assert (tmp_path / "found.mp4").stat().st_size > 0
    printed = run_blocks("docs/python.md", tmp_path)
    # The tutorial has done these steps, so the calls find them done.
    assert "0 embedded, 8 skipped, 0 failed" in printed
    assert "8 videos," in printed
    assert "refused: " in printed
    assert "2 videos, 64 dimensions" in printed
