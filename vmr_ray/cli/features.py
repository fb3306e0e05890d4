"""`vmr features ...` and `vmr annotations ...`: checking, packing and importing what others made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from vmr_ray.cli.common import (
    JsonOption,
    app,
    err,
    fail_above,
    listed,
    out,
    plain,
    print_json,
    progress_bar,
    show_quarantined,
)
from vmr_ray.errors import VmrError

features_app = typer.Typer(no_args_is_help=True, help="Check, pack or import features.")
app.add_typer(features_app, name="features")


@features_app.command()
def verify(
    features: Annotated[str, typer.Argument(help="feature store")],
    repair: Annotated[
        bool, typer.Option("--repair", help="delete damaged videos, so that `vmr embed` embeds them anew")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every chunk and check it. The exit code is 1 if anything is damaged, repaired or not."""
    from vmr_ray.features import verify as run

    with progress_bar("verifying", None) as bar:
        result = run(features, repair, lambda done, total: bar(done, "chunks", total))
    if as_json:
        print_json(asdict(result))
    else:
        out.print(
            f"{result.videos} videos are whole: {result.frames} frames in {result.chunks} chunks; "
            f"problems: {len(result.problems)}",
            highlight=False,
            soft_wrap=True,
        )
        if result.unfinished:
            err.print(f"[yellow]note:[/] {result.unfinished} videos are unfinished: run `vmr embed` again")
        if result.leftovers:
            err.print(
                f"[yellow]note:[/] {len(result.leftovers)} files of interrupted work do no harm: "
                f"`vmr features compact {plain(features)}` deletes them",
                highlight=False,
                soft_wrap=True,
            )
        for problem in result.problems:
            err.print(
                f"[bold red]damaged[/] {plain(f'{problem.where} ({problem.what}): {problem.fix}')}",
                highlight=False,
                soft_wrap=True,
            )
    if result.problems:
        raise typer.Exit(1)


@features_app.command()
def compact(
    features: Annotated[str, typer.Argument(help="feature store")],
    target_mb: Annotated[float, typer.Option(help="size of a pack, in MB", min=1)] = 256,
    as_json: JsonOption = False,
) -> None:
    """Pack the files of finished videos into few big ones. Not while features are read; embed may run."""
    from vmr_ray.features import compact as run

    with progress_bar("packing", None) as bar:
        result = run(features, target_mb, lambda done, total: bar(done, "chunks", total))
    if as_json:
        print_json(asdict(result))
        return
    out.print(
        f"{result.videos} videos packed, {result.bytes / 2**20:.1f} MB; {result.files_before} files are now "
        f"{result.files_after} -> {features}",
        highlight=False,
        soft_wrap=True,
    )


@features_app.command("import")
def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(help="folders of .npy, .npz or .pt, one file a video, or HDF5 files; they are joined"),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="feature store: a directory or URI")],
    clip_seconds: Annotated[
        str | None,
        typer.Option(help="seconds of one clip, or `duration`: the video's duration in equal shares"),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="clips a second, instead of --clip-seconds")] = None,
    name: Annotated[
        str | None, typer.Option(help="what to call the features; default: the sources' names")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="array inside a file; once, or once for each source")
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option("--annotations", "-a", help="file that tells the videos' durations; repeatable"),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="each source's rows to length 1")] = False,
    max_clips: Annotated[
        int | None, typer.Option(help="average longer videos down to this many clips", min=1)
    ] = None,
    tolerance: Annotated[
        int, typer.Option(help="clips by which sources or durations may differ; the excess is cut", min=0)
    ] = 2,
    max_failed: Annotated[
        float, typer.Option(help="share of failed videos above which the exit code is 1", min=0, max=1)
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Take precomputed features into a feature store. Finished videos are skipped, bad ones quarantined."""
    from vmr_ray.importing.features import import_features

    with progress_bar("importing", None) as bar:
        result = import_features(
            sources,
            to,
            _clip_seconds(clip_seconds, fps),
            name=name,
            keys=key or [],
            annotations=annotations or [],
            tolerance=tolerance,
            normalize=normalize,
            max_clips=max_clips,
            progress=lambda done, todo: bar(done, "videos", todo),
        )
    failed = len(result.quarantined)
    if as_json:
        print_json(asdict(result) | {"out": to})
    else:
        out.print(
            f"{result.videos} videos: {result.imported} imported, {result.skipped} already there, {failed} "
            f"quarantined; {result.clips} clips of {result.dim} dimensions as {result.encoder} -> {to}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if result.without_duration:
            err.print(f"[yellow]note:[/] {result.without_duration} videos without a known duration left out")
        show_quarantined(result.quarantined)
    fail_above(max_failed, failed, result.videos, "imported")


@features_app.command("import-text")
def import_text(
    source: Annotated[
        Path, typer.Argument(help="folder of .npz, .npy or .pt, one file a query, or one HDF5 file")
    ],
    annotations: Annotated[
        list[Path], typer.Option("--annotations", "-a", help="file with the queries; repeatable")
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="directory or URI for the token states")],
    key: Annotated[
        str | None, typer.Option(help="array inside a file; default: last_hidden_state, or the only one")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="every token to length 1")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="cut longer queries", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Take precomputed token states of queries, found by qid or row number, for `train.text_encoder`."""
    from vmr_ray.importing.token_states import import_text as run

    with progress_bar("importing", None) as bar:
        result = run(
            source,
            annotations,
            to,
            key=key,
            normalize=normalize,
            max_tokens=max_tokens,
            progress=lambda done, todo: bar(done, "queries", todo),
        )
    if as_json:
        print_json(asdict(result) | {"out": to})
        return
    out.print(
        f"{result.queries} queries, {result.texts} different texts, states of {result.dim} dimensions; train "
        f"with --set train.text_encoder={plain(result.encoder)}",
        highlight=False,
        soft_wrap=True,
    )


def _clip_seconds(text: str | None, fps: float | None) -> float | Literal["duration"]:
    if (text is None) == (fps is None):
        raise VmrError("the length of a clip is not clear: give either --clip-seconds or --fps")
    if fps is not None:
        if fps <= 0:
            raise VmrError(f"--fps {fps:g}: give a number above 0")
        return 1 / fps
    if text == "duration":
        return "duration"
    try:
        return float(str(text))
    except ValueError:
        raise VmrError(f"--clip-seconds {text}: give seconds, for example 0.5, or duration") from None


annotations_app = typer.Typer(no_args_is_help=True, help="Check annotation files.")
app.add_typer(annotations_app, name="annotations")


@annotations_app.callback()
def _annotations() -> None:
    """Check annotation files."""


@annotations_app.command()
def check(
    file: Annotated[Path, typer.Argument(help="JSONL/CSV of your own, or a benchmark's file")],
    features: Annotated[
        str | None, typer.Option(help="feature store: tell which videos of the file are in it")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which rows are usable and how to mend the others. The exit code is 1 if any was dropped."""
    from vmr_ray.annotations.check import check_annotations
    from vmr_ray.features import FeatureStore

    result = check_annotations(file, FeatureStore.open(features).video_ids() if features else None)
    if as_json:
        print_json(asdict(result))
    else:
        out.print(
            f"{file} ({result.format}): {result.rows} rows, {result.kept} usable, of which "
            f"{sum(result.clipped.values())} were clipped; {sum(result.dropped.values())} dropped; "
            f"{result.videos} videos",
            highlight=False,
            soft_wrap=True,
        )
        for action, colour in (("dropped", "bold red"), ("clipped", "yellow")):
            rows = [f"{p.where}: {p.reason}" for p in result.problems if p.action == action]
            listed(f"[{colour}]{action}[/]", rows)
        if result.with_features is not None and result.without_features is not None:
            out.print(f"{len(result.with_features)} of {result.videos} videos are in {features}")
            listed("[yellow]without features[/]", result.without_features)
    if not result.usable:
        raise typer.Exit(1)
