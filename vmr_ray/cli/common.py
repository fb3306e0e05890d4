"""What the verbs share: the application, its options, settings, progress, and how mistakes are told."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich import progress as bars
from rich.console import Console

from vmr_ray.config import Config, load_config

if TYPE_CHECKING:
    from vmr_ray.schema import Quarantined

app = typer.Typer(
    name="vmr",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Search inside video with plain sentences.

A folder of videos becomes searchable in three steps, and a model of your own in two more:

1. **vmr embed** VIDEOS --out features — decode and embed the frames
2. **vmr train** features --annotations moments.jsonl --out run — learn from sentences with times
3. **vmr evaluate** features --annotations test.jsonl --checkpoint run/best — measure it
4. **vmr index** features --checkpoint run/best --out index — make every video searchable
5. **vmr search** "a person pours milk" --index index, or **vmr serve** --index index for HTTP

**vmr up** VIDEOS does all of it for a folder with a model that you have, and opens the page. **vmr demo**
does it on a small world that it renders itself. **vmr doctor** says what is missing on this machine.

Every verb joins the Ray cluster of RAY_ADDRESS, or one that runs on this machine, or starts one.
""",
    epilog="Exit codes: 0 done; 1 the work failed (too many bad videos, a crash); 2 a mistake in the input, "
    "told in one sentence.",
)
out = Console()
err = Console(stderr=True)
LINE_SECONDS = 10.0  # between two progress lines in a log

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with any of the sections embed, train, ...")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override one value: section.key=value; repeatable")
]
_stdout: TextIO | None = None


def _keep_stdout(context: typer.Context, wanted: bool) -> bool:
    """What else is printed, by Ray for example, goes to stderr: stdout is one JSON object."""
    global _stdout
    if wanted:
        _stdout = sys.stdout
        context.with_resource(redirect_stdout(sys.stderr))
    return wanted


JsonOption = Annotated[
    bool, typer.Option("--json", help="print the result as one JSON object", callback=_keep_stdout)
]
CheckpointOption = Annotated[str, typer.Option(help="checkpoint directory, such as run/best")]


def read_config(
    path: Path | None, overrides: list[str] | None, flags: dict[str, Any] | None = None
) -> Config:
    """The config file, then --set, then the flags of the verb itself."""
    return load_config(path, [*(overrides or []), *as_overrides(flags or {})])


def as_overrides(flags: dict[str, Any]) -> list[str]:
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None
    ]


def print_json(value: Any) -> None:
    print(json.dumps(value), file=_stdout, flush=True)


def plain(text: str) -> str:
    """Text for rich, its square brackets kept."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def progress_bar(name: str, total: float | None) -> Iterator[Any]:
    """Progress on stderr: a bar at a terminal, else a line now and then; yields update(done, text, total)."""
    columns = (
        bars.TextColumn(f"[bold]{name}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[text]}"),
        bars.TimeElapsedColumn(),
    )
    said = time.monotonic()
    with bars.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(name, total=total, text="starting")

        def update(done: float, text: str, total: float | None = None) -> None:
            nonlocal said
            if total is not None:
                progress.update(task, total=total)
            progress.update(task, completed=done, text=text)
            if not err.is_terminal and time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                err.print(f"{name}: {done:g} of {progress.tasks[0].total:g}, {plain(text)}", highlight=False)

        yield update


def listed(label: str, lines: list[str], most: int = 20) -> None:
    """The first lines on stderr, and how many more there are."""
    for line in lines[:most]:
        err.print(f"{label} {plain(line)}", highlight=False, soft_wrap=True)
    if len(lines) > most:
        err.print(f"{label} and {len(lines) - most} more")


def fail_above(share: float, failed: int, videos: int, others: str) -> None:
    """End with exit code 1 if more than this share of the videos failed."""
    if failed > share * videos:
        err.print(
            f"[bold red]failed:[/] {failed} of {videos} videos are quarantined, more than the share "
            f"{share:g} that --max-failed allows; the others are {others}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def show_quarantined(rows: list[Quarantined]) -> None:
    listed("[yellow]quarantined[/]", [f"{row.video_id}: {row.error}" for row in rows])


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on stderr at a terminal, for what takes seconds and cannot be counted; else nothing."""
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
