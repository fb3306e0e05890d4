"""`vmr embed`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    fail_above,
    print_json,
    print_labelled,
    print_line,
    progress_bar,
    read_config,
    show_irregular,
    show_left_out,
)
from vmr_ray.cli.show import duration

if TYPE_CHECKING:
    from vmr_ray.schema import Progress, Summary


def embed(
    videos: Annotated[
        list[str],
        typer.Argument(help="files, directories, globs, manifests (JSONL/CSV with video_id, uri), URIs"),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="feature store: a directory or URI")],
    encoder: Annotated[
        str | None,
        typer.Option(
            help="efficientnet-lite0 (default), clip, clip-large, siglip, siglip2, or hf:NAME or hf:PATH "
            "of a CLIP/SigLIP-style model"
        ),
    ] = None,
    sampling: Annotated[
        str | None, typer.Option(help="fps=X frames a second, every=N (each Nth frame), or keyframes")
    ] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of one encoder; fractions are allowed")] = None,
    max_failed: Annotated[
        float | None, typer.Option(help="share of failed videos above which the exit code is 1")
    ] = None,
    report: Annotated[
        str | None, typer.Option(help="also write the summary as JSON to this path or URI")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode and encode videos into a feature store.

    Videos that are finished are skipped, so the same command resumes. Videos that cannot be read are
    quarantined.
    """
    from vmr_ray.embedding.embed import embed as run
    from vmr_ray.storage import exists, refuse_input, write_json
    from vmr_ray.video.sources import find_videos

    flags = {
        "embed.encoder": encoder,
        "embed.decode.sampling": sampling,
        "embed.num_gpus": num_gpus,
        "embed.max_failed": max_failed,
    }
    settings = read_config(config, set_, flags).embed
    if report is not None and exists(report):
        inputs = [video.uri for video in find_videos(videos, settings.storage_roots)]
        refuse_input(report, [*videos, *inputs], "--report")
    with progress_bar("embedding") as bar:
        summary = run(
            videos, to, settings, lambda now: bar(now.done + now.failed, _progress_text(now), now.videos)
        )
    result = asdict(summary) | {"out": to}
    if report is not None:
        write_json(report, result)
    if as_json:
        print_json(result)
    else:
        _show(summary, to)
    fail_above(settings.max_failed, len(summary.quarantined), summary.videos, "embedded")


def _show(summary: Summary, to: str) -> None:
    print_line(
        f"{summary.videos} videos: {summary.embedded} embedded, {summary.skipped} already there, "
        f"{len(summary.quarantined)} quarantined; {summary.hours:.2f} hours of video at "
        f"{summary.hours_per_hour:.1f} hours an hour, {summary.frames} frames -> {to}"
    )
    show_irregular(summary.partial, summary.spliced)
    show_left_out(summary.left_out)
    for bad in summary.quarantined:
        print_labelled("quarantined", f"{bad.video_id} ({bad.stage}): {bad.error}")


def _progress_text(now: Progress) -> str:
    left = "" if now.seconds_left is None else f", {duration(now.seconds_left)} left"
    return f"{now.failed} failed, {now.hours_per_hour:.1f} hours of video an hour{left}"
