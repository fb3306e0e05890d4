"""The tables of docs/configuration.md are those that docs/make_configuration.py writes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from vmr_ray.config import Config

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_configuration", DOCS / "make_configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(model: Any, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_page_is_current(maker: ModuleType):
    text = (DOCS / "configuration.md").read_text()
    assert text == maker.page(text), "run `python docs/make_configuration.py`"


def test_an_old_page_is_found(maker: ModuleType):
    text = (DOCS / "configuration.md").read_text()
    old = text.replace("| `train.lr` | float, > 0 | `0.001` |", "| `train.lr` | float, > 0 | `0.1` |")
    assert old != text
    assert maker.page(old) == text


def test_every_key_is_on_the_page(maker: ModuleType):
    text = (DOCS / "configuration.md").read_text()
    missing = [key for key in keys(Config) if f"\n| `{key}` | " not in text]
    assert not missing


def test_a_row_shows_type_limits_and_default(maker: ModuleType):
    rows = maker.table("train.", Config.model_fields["train"].annotation).splitlines()
    assert any(row.startswith("| `train.keep_tokens` | float, > 0, ≤ 1 | `0.6` | ") for row in rows)
    assert any(row.startswith("| `train.max_minutes` | float, > 0 | `null` | ") for row in rows)
    assert any(row.startswith("| `train.track` | list of `tensorboard`, `mlflow` | `[]` | ") for row in rows)
