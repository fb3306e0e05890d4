"""`vmr annotations ...`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import JsonOption, print_first, print_json, print_line

annotations_app = typer.Typer(no_args_is_help=True, help="Check annotation files.")


@annotations_app.command()
def check(
    file: Annotated[Path, typer.Argument(help="JSONL/CSV of your own, or a benchmark's file")],
    features: Annotated[
        str | None, typer.Option(help="feature store: also list which videos of the file are in it")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the usable rows and say how to fix the others.

    The exit code is 1 if any row was dropped.
    """
    from vmr_ray.annotations.check import check_annotations
    from vmr_ray.features import FeatureStore

    result = check_annotations(file, FeatureStore.open(features).video_ids() if features else None)
    if as_json:
        print_json(asdict(result))
    else:
        print_line(
            f"{file} ({result.format}): {result.rows} rows, {result.kept} usable, of which "
            f"{sum(result.clipped.values())} were clipped; {sum(result.dropped.values())} dropped; "
            f"{result.videos} videos"
        )
        for action, style in (("dropped", "bold red"), ("clipped", "yellow")):
            rows = [f"{p.where}: {p.reason}" for p in result.problems if p.action == action]
            print_first(action, rows, style)
        if result.with_features is not None and result.without_features is not None:
            print_line(f"{len(result.with_features)} of {result.videos} videos are in {features}")
            print_first("without features", result.without_features)
    if not result.usable:
        raise typer.Exit(1)
