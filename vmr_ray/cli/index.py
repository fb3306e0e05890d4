"""`vmr index`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    print_json,
    print_line,
    progress_bar,
    read_config,
)


def index(
    features: Annotated[str, typer.Argument(help="feature store")],
    to: Annotated[str, typer.Option("--out", "-o", help="index: a directory or an object-storage URI")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="checkpoint directory, such as run/best; default: search without training"),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="without a checkpoint: everyday (default) or everyday-multilingual"),
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help="JSONL or CSV with video_id and fields of your own, by which searches can filter"),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make embedded videos searchable.

    Run it again after embedding more videos: only the new ones are added. Without --checkpoint, frames are
    ranked without training: by the encoder everyday, or by the hf: model that the features are of.
    """
    from vmr_ray.search.build import build_index
    from vmr_ray.search.metadata import read_metadata

    with progress_bar("indexing") as bar:
        summary = build_index(
            features,
            checkpoint,
            to,
            read_config(config, set_).index,
            lambda done, total: bar(done, "videos", total),
            metadata=read_metadata(metadata) if metadata else None,
            encoder=encoder,
        )
    if as_json:
        print_json(asdict(summary) | {"out": to})
        return
    print_line(
        f"{summary.added} videos added; the index holds {summary.videos} videos, "
        f"{summary.segments} segments -> {to}"
    )
