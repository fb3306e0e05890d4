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
    """Search real photos without training, then train on a drawn world; in minutes.

    It renders short videos of photos that installed packages bring, embeds, indexes and serves them, and asks
    in plain words. Then it draws videos, trains on them, evaluates and searches; the small model is left in
    demo/run/best. At the end it serves the photos.
    """
    from vmr_ray.demo.run import run

    run(directory, stay=not exit_, port=port)
