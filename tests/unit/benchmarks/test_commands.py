"""Each `python -m benchmarks...` line of README and docs names a benchmark and options that exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.py")])


def commands(text: str) -> list[str]:
    """The commands of inline code and of lines of their own, continued lines joined."""
    inline = [" ".join(code.split()) for code in re.findall(r"`(python -m benchmarks[^`]+)`", text)]
    joined = text.replace("\\\n", " ")
    return [*inline, *re.findall(r"^ *(python -m benchmarks\.[^`\n]*?)(?:   .*)?$", joined, re.M)]


def check(line: str) -> None:
    words = shlex.split(line, comments=True)[2:]
    app = typer.Typer()
    app.command()(importlib.import_module(words[0]).main)
    known = {name for option in typer.main.get_command(app).params for name in option.opts} | {"--help"}
    for word in words[1:]:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{line}: there is no option {word}"


def test_commands_exist() -> None:
    lines = {line for page in PAGES for line in commands(page.read_text())}
    named = {line.split()[2] for line in lines}
    for name in ("accuracy", "autoscaling", "ingest", "scaling", "serve", "slideshows", "untrained"):
        assert f"benchmarks.{name}" in named
    for line in lines:
        check(line)


def test_a_wrong_command_is_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        check("python -m benchmarks.accurate")
    with pytest.raises(AssertionError, match="there is no option --ablation-minutes"):
        check("python -m benchmarks.accuracy --ablation-minutes 6")


def test_no_benchmark_is_run_as_a_file() -> None:
    """Run as a file it would not find its package."""
    assert [str(page) for page in PAGES if "python benchmarks/" in page.read_text()] == []
