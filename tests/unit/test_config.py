"""Config files and --set: defaults, overrides, mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmr_ray.config import Config, Section, load_config
from vmr_ray.errors import VmrError


def test_defaults_need_no_file():
    assert load_config().embed.decode.sampling == "fps=1"


def test_file_then_overrides(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 7, lr: 0.1}\nembed: {decode: {sampling: every=5}}\n")
    config = load_config(path, ["train.lr=1e-3", "model.dim=64"])
    assert (config.train.epochs, config.train.lr, config.model.dim) == (7, 0.001, 64)
    assert config.embed.decode.sampling == "every=5"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("trian: {}", [], "unknown key 'trian'"),
        ("train: {epoch: 3}", [], "unknown key 'train.epoch'"),
        ("embed: {decode: {fps: 2}}", [], "known here: sampling"),
        ("train: {epochs: 0}", [], "train.epochs"),
        ("model: {dim: 30, heads: 4}", [], "heads must divide dim"),
        ("embed: {decode: {sampling: often}}", [], "embed.decode.sampling"),
        ("- a list", [], "expected sections"),
        ("train: [", [], "not valid YAML"),
        ("", ["train.epochs"], "section.key=value"),
        ("", ["train.nope=1"], "unknown key 'train.nope'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], message: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(VmrError, match=message) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(VmrError, match="nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def sections(cls: type[Section]) -> Iterator[type[Section]]:
    """The section and all below it."""
    yield cls
    for field in cls.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


@pytest.mark.parametrize("section", list(sections(Config)), ids=lambda cls: cls.__name__)
def test_every_setting_is_described(section: type[Section]):
    """docs/configuration.md is made of these."""
    assert section.__doc__ and section.__doc__ != Section.__doc__
    values = {n: f for n, f in section.model_fields.items() if not isinstance(f.default, Section)}
    assert not [name for name, field in values.items() if not field.description]
    # Markdown would drop what looks like an HTML tag.
    assert not [name for name, field in values.items() if "<" in (field.description or "")]
