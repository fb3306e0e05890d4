"""Write the tables of docs/configuration.md: `python docs/make_configuration.py`.

They come from the settings in the code. Tables stand between `<!-- tables: NAME -->` and
`<!-- end of tables -->`; the text around them is written by hand.

tests/unit/repository/test_configuration_page.py fails when the page and the settings differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vmr_ray.config import Config
from vmr_ray.serve.models import ServeArgs
from vmr_ray.workflows.pipeline import PipelineConfig
from vmr_ray.workflows.reproduce import BenchmarkConfig

PAGE = Path(__file__).with_name("configuration.md")
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
UNIONS = (Union, UnionType)


def page(text: str) -> str:
    """The page with its tables written again; the text around them stays."""
    for name, tables in blocks().items():
        start, end = f"<!-- tables: {name} -->\n", "<!-- end of tables -->\n"
        before, after = text.split(start)
        text = f"{before}{start}\n{tables}\n{end}{after.split(end, 1)[1]}"
    return text


def blocks() -> dict[str, str]:
    """The tables by the name of their place. The page itself has the headings of the last three."""
    config = [part for name, field in Config.model_fields.items() for part in section(name, field.annotation)]
    return {
        "config": "\n".join(config),
        "pipeline": "\n".join(list(section("pipeline", PipelineConfig))[2:]),
        "benchmark": "\n".join(list(section("benchmark", BenchmarkConfig))[2:]),
        "service": table("", ServeArgs),
    }


def section(path: str, model: Any) -> Iterator[str]:
    """The heading and table of one section, then those of the sections in it."""
    yield f"{'#' * (2 + path.count('.'))} `{path}`\n"
    yield " ".join((model.__doc__ or "").split()) + "\n"
    yield table(f"{path}.", model)
    for name, field in model.model_fields.items():
        for inner in sections_in(field.annotation):
            yield from section(f"{path}.{name}", inner)


def table(prefix: str, model: type[BaseModel]) -> str:
    """One row for each setting that is a value, a list of sections, or a section that may be left out."""
    rows = [
        f"| `{prefix}{name}` | {type_of(field)} | {default_of(field)} | {text_of(field)} |"
        for name, field in model.model_fields.items()
        if not is_section(field.annotation)
    ]
    return "\n".join(["| key | type | default | description |", "|---|---|---|---|", *rows]) + "\n"


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if is_section(annotation):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from sections_in(inner)


def type_of(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([type_name(field.annotation), *limits])


def type_name(annotation: Any) -> str:
    if is_section(annotation):
        return "section"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in UNIONS:
        return " or ".join(type_name(each) for each in inner if each is not NoneType)
    if origin is tuple:
        return f"list of {type_name(inner[0])}"
    return str(annotation.__name__)


def default_of(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{json.dumps(field.default, ensure_ascii=False)}`"


def text_of(field: FieldInfo) -> str:
    """The description; `<` is escaped outside code, where it would begin an HTML tag."""
    parts = (field.description or "").replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
