"""What README and docs name exists: verbs and options, links, files, modules, settings."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from vmr_ray.cli.app import app
from vmr_ray.config import Config

ROOT = Path(__file__).parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
TOP = "vmr_ray|benchmarks|tests|jobs|configs|serve_configs|deploy|docs"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def inline_code(text: str) -> list[str]:
    """The inline code of a page, with its line breaks as spaces."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


def commands(text: str) -> list[str]:
    """The commands that begin with `vmr`, in blocks and in inline code, continued lines joined."""
    blocks = "\n".join(body for _, body in BLOCK.findall(text)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in blocks.splitlines()]
    return [line for line in [*lines, *inline_code(text)] if re.match(r"vmr\s", line)]


def check_command(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        child = command.commands.get(words[0])
        if child is None and words[0].isupper():
            return  # a placeholder, as in `vmr VERB --help`
        assert child is not None, f"{line}: there is no verb {words[0]}"
        command, words = child, words[1:]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-v"}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{line}: there is no option {word}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """The links of a page to files and headings that do not exist."""
    text = page.read_text()
    prose = BLOCK.sub("", text)
    targets = [*re.findall(r"\]\(([^)\s]+)\)", prose), *re.findall(r'src="([^"]+)"', prose)]
    broken = []
    for target in targets:
        if re.match(r"\w+://", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    return broken


def missing_paths(text: str) -> list[str]:
    """The paths of this repository that a page names in code and that do not exist."""
    code = [*inline_code(text), *(body for _, body in BLOCK.findall(text))]
    paths = [path for each in code for path in re.findall(rf"(?<![\w./-])(?:{TOP})/[\w./-]*\w", each)]
    paths += [f"benchmarks/{name}.py" for each in code for name in re.findall(r"-m benchmarks\.(\w+)", each)]
    # An upper-case name is a placeholder, and `share/` of an installation has no files here.
    return [p for p in paths if not (ROOT / p).exists() and not re.search(r"\b[A-Z]{2,}\b", p)]


def missing_imports(text: str) -> list[str]:
    """What Python blocks import from this package and what does not exist there."""
    missing = []
    for kind, body in BLOCK.findall(text):
        if kind not in ("python", "py"):
            continue
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vmr_ray"):
                module = importlib.import_module(node.module)
                missing += [f"{node.module}.{n.name}" for n in node.names if not hasattr(module, n.name)]
    return missing


def settings(model: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every key and section of the configuration."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")


def unknown_settings(text: str) -> list[str]:
    """The settings that a page names in code (`train.lr`, `--set train.lr=1`) and that do not exist."""
    sections = "|".join(Config.model_fields)
    code = "\n".join([*inline_code(text), *(body for kind, body in BLOCK.findall(text) if kind == "sh")])
    named = re.findall(rf"(?:^|--set )((?:{sections})\.[a-z_.]+)(?=[=\s]|$)", code, re.M)
    return [key for key in named if key not in set(settings()) and not re.search(r"\.(jsonl?|py|csv)$", key)]


@each_page
def test_commands_exist(page: Path):
    for line in commands(page.read_text()):
        check_command(line)


def test_the_pages_name_commands():
    """Else the test above would pass because it finds none."""
    for name in ("README.md", "docs/cli.md", "docs/tutorial.md", "docs/features.md", "docs/embedding.md"):
        assert len(commands((ROOT / name).read_text())) >= 4


def test_every_verb_is_in_the_manual():
    def verbs(command: Any, name: str) -> Iterator[str]:
        for word, child in getattr(command, "commands", {}).items():
            yield from verbs(child, f"{name} {word}") if hasattr(child, "commands") else [f"{name} {word}"]

    manual = inline_code((ROOT / "docs/cli.md").read_text())
    assert not [verb for verb in verbs(typer.main.get_command(app), "vmr") if verb not in manual]


@each_page
def test_links_lead_somewhere(page: Path):
    assert broken_links(page) == []


@each_page
def test_paths_exist(page: Path):
    assert missing_paths(page.read_text()) == []


@each_page
def test_imports_work(page: Path):
    assert missing_imports(page.read_text()) == []


@each_page
def test_settings_exist(page: Path):
    assert unknown_settings(page.read_text()) == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not [name for name in pages if f"]({name})" not in index]


@pytest.mark.parametrize("line", ["vmr serach x", "vmr search x --indx i", "vmr features unpack"])
def test_a_wrong_command_is_found(line: str):
    assert commands(f"```sh\n{line}\n```\n") == commands(f"`{line}`") == [line]
    with pytest.raises(AssertionError, match="there is no"):
        check_command(line)


def test_a_broken_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# The `page`\n[a](page.md#the-page) [b](page.md#other) [c](gone.md) [d](https://example.com)\n"
    )
    assert broken_links(page) == ["page.md#other", "gone.md"]


def test_a_wrong_name_is_found():
    assert missing_paths(
        "`vmr_ray/config.py` `vmr_ray/gone.py` `jobs/VERB.py` `python -m benchmarks.gone`"
    ) == [
        "vmr_ray/gone.py",
        "benchmarks/gone.py",
    ]
    assert missing_imports("```python\nfrom vmr_ray.config import Config, Gone\n```\n") == [
        "vmr_ray.config.Gone"
    ]
    assert unknown_settings("`train.lr` `train.jsonl` `train.rate` `vmr train x --set model.size=3`") == [
        "train.rate",
        "model.size",
    ]
