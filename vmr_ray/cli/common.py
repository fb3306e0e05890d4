"""What the verbs share: options, settings, output and progress."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from vmr_ray.config import Config, load_config

if TYPE_CHECKING:
    from vmr_ray.schema import Partial, Quarantined, Spliced

out = Console()
err = Console(stderr=True)
LINE_SECONDS = 10.0  # between two progress lines in a log
_json_stdout: TextIO | None = None  # the real stdout while everything else goes to stderr


def _keep_stdout(context: typer.Context, wanted: bool) -> bool:
    """Send what Ray and other libraries print to stderr, so that stdout is one JSON object."""
    global _json_stdout
    if wanted:
        _json_stdout = sys.stdout
        context.with_resource(redirect_stdout(sys.stderr))
    return wanted


JsonOption = Annotated[
    bool, typer.Option("--json", help="print the result as one JSON object", callback=_keep_stdout)
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with any of the sections embed, train, ...")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override one setting: section.key=value; repeatable")
]
WorkersOption = Annotated[int | None, typer.Option(help="data-parallel training processes")]
EpochsOption = Annotated[int | None, typer.Option(help="passes over the annotated videos")]
GpuOption = Annotated[bool | None, typer.Option("--gpu/--cpu", help="train on one GPU a worker, or on CPUs")]


def read_config(
    path: Path | None, overrides: list[str] | None, flags: dict[str, Any] | None = None
) -> Config:
    """The config file, overridden by --set, which is overridden by the flags of the verb itself."""
    return load_config(path, [*(overrides or []), *as_overrides(flags or {})])


def as_overrides(flags: dict[str, Any]) -> list[str]:
    """Those of the flags that were given, as `section.key=value`."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None
    ]


def print_json(value: Any) -> None:
    """The result of a verb with --json."""
    print(json.dumps(value), file=_json_stdout, flush=True)


def print_line(text: str) -> None:
    """A line of text on stdout, as it is: not wrapped, not coloured."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def print_labelled(label: str, text: str, style: str = "yellow") -> None:
    """A line of text on stderr after a coloured label."""
    err.print(f"[{style}]{label}[/] {plain(text)}", highlight=False, soft_wrap=True)


def print_first(label: str, lines: list[str], style: str = "yellow", limit: int = 20) -> None:
    """The first lines on stderr, each after the label, and how many more there are."""
    for line in lines[:limit]:
        print_labelled(label, line, style)
    if len(lines) > limit:
        print_labelled(label, f"and {len(lines) - limit} more", style)


def show_left_out(names: list[str], limit: int = 20) -> None:
    """Print which files of the inputs were not taken for videos, on one line."""
    if names:
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        print_labelled("left out", f"not the name of a video: {', '.join(names[:limit])}{more}")


def show_irregular(partial: Sequence[Partial], spliced: Sequence[Spliced]) -> None:
    """Print which videos were embedded in part, and which have a clock that jumps."""
    print_first(
        "partial", [f"{row.video_id}: {row.damage}; its readable frames are embedded" for row in partial]
    )
    lines = []
    for video in spliced:
        places = ", ".join(f"{second:.2f} s" for second in video.at)
        lines.append(f"{video.video_id}: its clock jumps at {places}; times go on without a gap")
    print_first("spliced", lines)


def show_quarantined(rows: list[Quarantined]) -> None:
    """Print which videos were quarantined, and why."""
    print_first("quarantined", [f"{row.video_id}: {row.error}" for row in rows])


def fail_above(max_failed: float, failed: int, videos: int, others: str) -> None:
    """End with exit code 1 if more than this share of the videos failed."""
    if failed > max_failed * videos:
        print_labelled(
            "failed:",
            f"{failed} of {videos} videos are quarantined, more than the share {max_failed:g} that "
            f"--max-failed allows; the others are {others}",
            "bold red",
        )
        raise typer.Exit(1)


def plain(text: str) -> str:
    """Escape square brackets, which rich would read as markup."""
    return escape(text)


@contextmanager
def progress_bar(name: str, total: float | None = None) -> Iterator[Any]:
    """Yields `update(done, text, total)`: a bar on stderr at a terminal, else a line now and then."""
    columns = (
        bars.TextColumn(f"[bold]{name}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[text]}"),
        bars.TimeElapsedColumn(),
    )
    last_line = time.monotonic()
    with bars.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(name, total=total, text="starting")

        def update(done: float, text: str, total: float | None = None) -> None:
            nonlocal last_line
            if total is not None:
                progress.update(task, total=total)
            progress.update(task, completed=done, text=text)
            if not err.is_terminal and time.monotonic() - last_line > LINE_SECONDS:
                last_line = time.monotonic()
                err.print(f"{name}: {done:g} of {progress.tasks[0].total:g}, {plain(text)}", highlight=False)

        yield update


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner at a terminal, for work of some seconds that has no count; nothing elsewhere."""
    if err.is_terminal:
        with err.status(text):
            yield
    else:
        yield


def has_display() -> bool:
    """Whether a window can be opened here."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
