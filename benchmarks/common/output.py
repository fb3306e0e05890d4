"""What a benchmark prints, at most 80 columns wide, and the figures that it writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from vmr_ray.errors import VmrError
from vmr_ray.storage import write_json

WIDTH = 80
Figures = dict[str, float]
JsonOption = Annotated[Path | None, typer.Option("--json", help="write the figures to this file, flat keys")]
out = Console(width=WIDTH, highlight=False)


def run_command(main: Callable[..., None]) -> None:
    """The command line of a benchmark. A VmrError is one sentence on stderr and exit code 2."""
    # Read when the libraries load: of their notices only what ends the run is printed.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        typer.run(main)
    except VmrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def print_line(text: str) -> None:
    """One line, however long it is: rich would wrap it and read square brackets as markup."""
    out.print(text, soft_wrap=True, markup=False)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table whose first column is text and whose others are figures."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_edge=False,
    )
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    out.print()
    out.print(table)


def print_figures(figures: Mapping[str, float]) -> None:
    """A line for each figure."""
    for name, value in figures.items():
        print_line(f"{name}: {value:.4g}")


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """The figures as one JSON object, if a file was named."""
    if path is not None:
        write_json(path, figures)
