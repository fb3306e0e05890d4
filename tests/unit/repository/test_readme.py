"""Each `vmr ...` line of README and docs names verbs and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from vmr_ray.cli.app import app

ROOT = Path(__file__).parents[3]
FILES = ["README.md", "CONTRIBUTING.md", "docs/cli.md", "docs/tutorial.md", "docs/features.md"]


def commands(text: str) -> list[str]:
    """The lines of fenced blocks and the inline code that begin with `vmr`, continued lines joined."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    outside = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]
    return [line for line in [*blocks.splitlines(), *inline] if re.match(r"vmr\s", line)]


def check(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    found: Any = typer.main.get_command(app)
    while words and hasattr(found, "commands") and not words[0].startswith("-"):
        child = found.commands.get(words[0])
        if child is None and words[0].isupper():
            return  # a placeholder, as in `vmr VERB --help`
        assert child is not None, f"{line}: there is no verb {words[0]}"
        found, words = child, words[1:]
    known = {name for p in found.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-v"}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{line}: there is no option {word}"


@pytest.mark.parametrize("file", FILES)
def test_commands_exist(file: str):
    lines = commands((ROOT / file).read_text())
    assert lines
    for line in lines:
        check(line)


@pytest.mark.parametrize("line", ["vmr serach x", "vmr search x --indx i", "vmr features unpack"])
def test_a_wrong_command_is_found(line: str):
    with pytest.raises(AssertionError, match="there is no"):
        check(line)
