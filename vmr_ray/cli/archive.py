"""`vmr embed` and `vmr index`: videos become searchable."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    app,
    err,
    fail_above,
    out,
    plain,
    print_json,
    progress_bar,
    read_config,
)
from vmr_ray.cli.show import duration

if TYPE_CHECKING:
    from vmr_ray.schema import Progress


@app.command()
def embed(
    videos: Annotated[
        list[str],
        typer.Argument(help="files, directories, globs, manifests (JSONL/CSV with video_id, uri), URIs"),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="feature store: a directory or URI")],
    encoder: Annotated[
        str | None, typer.Option(help="efficientnet-lite0, or hf:<name or path> of a CLIP/SigLIP-style model")
    ] = None,
    sampling: Annotated[str | None, typer.Option(help="fps=<x>, every=<n> frames, or keyframes")] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of one encoder; fractions are allowed")] = None,
    max_failed: Annotated[
        float | None, typer.Option(help="share of failed videos above which the exit code is 1")
    ] = None,
    report: Annotated[
        str | None, typer.Option(help="write the summary there as JSON too: a path or URI")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode and embed videos into a feature store. Finished videos are skipped, bad ones quarantined."""
    from vmr_ray.embedding.embed import embed as run

    settings = read_config(
        config,
        set_,
        {
            "embed.encoder": encoder,
            "embed.decode.sampling": sampling,
            "embed.num_gpus": num_gpus,
            "embed.max_failed": max_failed,
        },
    ).embed
    with progress_bar("embedding", None) as bar:
        summary = run(
            videos,
            to,
            settings,
            lambda now: bar(now.done + now.failed, _embed_text(now), now.videos),
        )
    failed = len(summary.quarantined)
    result = asdict(summary) | {"out": to}
    if report is not None:
        from vmr_ray.storage import write_json

        write_json(report, result)
    if as_json:
        print_json(result)
    else:
        out.print(
            f"{summary.videos} videos: {summary.embedded} embedded, {summary.skipped} already there, "
            f"{failed} quarantined; {summary.hours:.2f} hours of video at {summary.hours_per_hour:.1f} hours "
            f"an hour, {summary.frames} frames -> {to}",
            highlight=False,
            soft_wrap=True,
        )
        for row in summary.partial:
            err.print(
                f"[yellow]partial[/] {plain(row.video_id)}: {plain(row.damage)}; its readable frames are "
                "embedded",
                highlight=False,
                soft_wrap=True,
            )
        for bad in summary.quarantined:
            err.print(
                f"[yellow]quarantined[/] {plain(bad.video_id)} ({bad.stage}): {plain(bad.error)}",
                highlight=False,
                soft_wrap=True,
            )
    fail_above(settings.max_failed, failed, summary.videos, "embedded")


@app.command()
def index(
    features: Annotated[str, typer.Argument(help="feature store")],
    to: Annotated[str, typer.Option("--out", "-o", help="index: a directory or an object-storage URI")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="checkpoint directory, such as run/best; features of an hf: model need none"),
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help="JSONL or CSV with video_id and fields of your own, which searches can filter by"),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make embedded videos searchable. Run it again after embedding more: only the new ones are added.

    Without a --checkpoint, features of an hf: model are ranked by its own similarity, untrained.
    """
    from vmr_ray.search.build import build_index
    from vmr_ray.search.metadata import read_metadata

    with progress_bar("indexing", None) as bar:
        summary = build_index(
            features,
            checkpoint,
            to,
            read_config(config, set_).index,
            lambda done, todo: bar(done, "videos", todo),
            metadata=read_metadata(metadata) if metadata else None,
        )
    if as_json:
        print_json(asdict(summary) | {"out": to})
        return
    out.print(
        f"{summary.added} videos added; the index holds {summary.videos} videos, "
        f"{summary.segments} segments -> {to}",
        highlight=False,
        soft_wrap=True,
    )


def _embed_text(now: Progress) -> str:
    left = "" if now.seconds_left is None else f", {duration(now.seconds_left)} left"
    return f"{now.failed} failed, {now.hours_per_hour:.1f} hours of video an hour{left}"
