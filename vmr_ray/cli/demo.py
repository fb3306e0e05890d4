"""`vmr demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="where the demo's files go")] = Path("demo"),
    exit_: Annotated[
        bool, typer.Option("--exit", help="stop after the answers instead of serving them")
    ] = False,
    port: Annotated[int, typer.Option(help="port to serve on")] = 8000,
) -> None:
    """Run every step on a small rendered world, in minutes.

    It renders videos, then embeds, trains, evaluates, indexes, serves and asks. It leaves a small model in
    demo/run/best.
    """
    from vmr_ray.demo.run import run

    run(directory, stay=not exit_, port=port)
