"""`vmr features ...`: check and pack a feature store, and import what others computed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from vmr_ray.cli.common import (
    JsonOption,
    fail_above,
    print_json,
    print_labelled,
    print_line,
    progress_bar,
    show_quarantined,
)
from vmr_ray.errors import VmrError

features_app = typer.Typer(no_args_is_help=True, help="Check, pack or import features.")


StoreArgument = Annotated[str, typer.Argument(metavar="features", help="feature store")]


@features_app.command()
def verify(
    store: StoreArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="delete damaged videos, so that `vmr embed` embeds them again")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every chunk and check it.

    The exit code is 1 if anything is damaged, even if it was repaired.
    """
    from vmr_ray.features import verify as run

    with progress_bar("verifying") as bar:
        result = run(store, repair, lambda done, total: bar(done, "chunks", total))
    if as_json:
        print_json(asdict(result))
    else:
        print_line(
            f"{result.videos} videos are whole: {result.frames} frames in {result.chunks} chunks; "
            f"problems: {len(result.problems)}"
        )
        if result.unfinished:
            print_labelled("note:", f"{result.unfinished} videos are unfinished: run `vmr embed` again")
        if result.leftovers:
            print_labelled(
                "note:",
                f"{len(result.leftovers)} files of interrupted work do no harm: "
                f"`vmr features compact {store}` deletes them",
            )
        for problem in result.problems:
            print_labelled("damaged", f"{problem.where} ({problem.what}): {problem.fix}", "bold red")
    if result.problems:
        raise typer.Exit(1)


@features_app.command()
def compact(
    store: StoreArgument,
    target_mb: Annotated[float, typer.Option(help="size of a pack, in MB", min=1)] = 256,
    as_json: JsonOption = False,
) -> None:
    """Pack the files of finished videos into a few big ones.

    `vmr embed` may run at the same time, but nothing that reads the features.
    """
    from vmr_ray.features import compact as run

    with progress_bar("packing") as bar:
        result = run(store, target_mb, lambda done, total: bar(done, "chunks", total))
    if as_json:
        print_json(asdict(result))
        return
    print_line(
        f"{result.videos} videos packed, {result.bytes / 2**20:.1f} MB; {result.files_before} files are now "
        f"{result.files_after} -> {store}"
    )


@features_app.command("import")
def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="folders of .npy, .npz or .pt with one file a video, or HDF5 files; they are joined"
        ),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="feature store: a directory or URI")],
    clip_seconds: Annotated[
        str | None,
        typer.Option(help="seconds of one clip, or `duration`: the clips share the video's duration equally"),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="clips a second, instead of --clip-seconds")] = None,
    name: Annotated[
        str | None, typer.Option(help="name of the features; default: the names of the sources")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="array inside a file; once, or once for each source")
    ] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            "--annotations", "-a", help="annotation file with the durations of the videos; repeatable"
        ),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="scale each row of each source to length 1")
    ] = False,
    max_clips: Annotated[
        int | None, typer.Option(help="average longer videos down to this number of clips", min=1)
    ] = None,
    tolerance: Annotated[
        int, typer.Option(help="clips by which sources or durations may differ; the excess is cut off", min=0)
    ] = 2,
    max_failed: Annotated[
        float, typer.Option(help="share of failed videos above which the exit code is 1", min=0, max=1)
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Import precomputed features into a feature store.

    Videos that are finished are skipped, so the same command resumes. Bad ones are quarantined.
    """
    from vmr_ray.importing.features import import_features

    with progress_bar("importing") as bar:
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
            progress=lambda done, total: bar(done, "videos", total),
        )
    failed = len(result.quarantined)
    if as_json:
        print_json(asdict(result) | {"out": to})
    else:
        print_line(
            f"{result.videos} videos: {result.imported} imported, {result.skipped} already there, {failed} "
            f"quarantined; {result.clips} clips of {result.dim} dimensions as {result.encoder} -> {to}"
        )
        if result.without_duration:
            print_labelled("note:", f"{result.without_duration} videos of unknown duration were left out")
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
    normalize: Annotated[bool, typer.Option("--normalize", help="scale every token to length 1")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="cut longer queries", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Import precomputed token states of queries.

    They are found by qid or row number, and used as the setting `train.text_encoder`.
    """
    from vmr_ray.importing.token_states import import_text as run

    with progress_bar("importing") as bar:
        result = run(
            source,
            annotations,
            to,
            key=key,
            normalize=normalize,
            max_tokens=max_tokens,
            progress=lambda done, total: bar(done, "queries", total),
        )
    if as_json:
        print_json(asdict(result) | {"out": to})
        return
    print_line(
        f"{result.queries} queries, {result.texts} different texts, states of {result.dim} dimensions; train "
        f"with --set train.text_encoder={result.encoder}"
    )


def _clip_seconds(text: str | None, fps: float | None) -> float | Literal["duration"]:
    """The length of a clip from either option.

    Raises:
        VmrError: neither or both are given, or one is not a number above 0.
    """
    if (text is None) == (fps is None):
        raise VmrError("the length of a clip is not clear: give either --clip-seconds or --fps")
    if fps is not None:
        if fps <= 0:
            raise VmrError(f"--fps {fps:g}: give a number above 0")
        return 1 / fps
    if text == "duration":
        return "duration"
    try:
        return float(text or "")
    except ValueError:
        raise VmrError(f"--clip-seconds {text}: give seconds, for example 0.5, or duration") from None
