"""`vmr train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    EpochsOption,
    GpuOption,
    JsonOption,
    SetOption,
    WorkersOption,
    print_first,
    print_json,
    print_labelled,
    print_line,
    progress_bar,
    read_config,
)
from vmr_ray.errors import VmrError

if TYPE_CHECKING:
    from vmr_ray.config import Config
    from vmr_ray.training.train import TrainResult


def train(
    to: Annotated[
        str, typer.Option("--out", "-o", help="run: a directory or URI; give the same one to resume")
    ],
    features: Annotated[str | None, typer.Argument(help="feature store")] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations", "-a", help="JSONL/CSV with video, query, start, end, or a benchmark's file"
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="train on captioned photos instead: a folder of images, or a Parquet file"),
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="of a folder of photos; default: captions.jsonl or .csv in it")
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled",
            help="without annotations: learn the boundaries of the videos in the feature store",
        ),
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="with --photos: as in `vmr embed`; with --unlabelled: the dual encoder that will search, as "
            "in `vmr index`"
        ),
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="validation annotations; default: some videos are held out")
    ] = None,
    workers: WorkersOption = None,
    epochs: EpochsOption = None,
    gpu: GpuOption = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard or mlflow: also log the metrics of every epoch there; repeatable"),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on annotated videos, on captioned photos, or on videos without annotations.

    Run the same command again to resume after an interruption.
    """
    _check_sources(features, annotations, photos, captions, val, unlabelled, encoder)
    flags = {
        "train.workers": workers,
        "train.epochs": epochs,
        "train.use_gpu": gpu,
        "train.track": track,
        "embed.encoder": encoder if photos else None,
    }
    settings = read_config(config, set_, flags)
    with progress_bar("training", settings.train.epochs) as bar:
        if unlabelled:
            from vmr_ray.training.unlabelled import train_unlabelled

            result = train_unlabelled(str(features), to, settings, encoder, partial(_show_epoch, bar))
            extra: dict[str, Any] = {}
        elif photos is None:
            from vmr_ray.training.train import train as run

            result = run(str(features), annotations or "", to, settings, val, partial(_show_epoch, bar))
            extra = {}
        else:
            result, extra = _train_on_photos(bar, photos, to, settings, captions)
    if as_json:
        print_json({k: v for k, v in asdict(result).items() if k != "history"} | extra)
    else:
        print_first("left out:", extra.get("unreadable", []))
        _show(result, str(features))


def _train_on_photos(
    bar: Callable[..., None], photos: Path, to: str, settings: Config, captions: Path | None
) -> tuple[TrainResult, dict[str, Any]]:
    """The training's result, and what else `--json` prints of it."""
    from vmr_ray.workflows.photos import train_on_photos

    found = train_on_photos(
        photos,
        to,
        settings,
        captions,
        partial(_show_epoch, bar),
        lambda done, total: bar(done, "photos embedded", total),
    )
    return found.train, {"photos": found.photos, "unreadable": [row.error for row in found.unreadable]}


def _check_sources(
    features: str | None,
    annotations: Path | None,
    photos: Path | None,
    captions: Path | None,
    val: Path | None,
    unlabelled: bool,
    encoder: str | None,
) -> None:
    """Raises VmrError unless there is a feature store with annotations or --unlabelled, or photos."""
    if unlabelled and (annotations or photos or captions or val):
        raise VmrError("--unlabelled needs a feature store only: leave out annotations and photos")
    if encoder is not None and not unlabelled and photos is None:
        raise VmrError(
            "--encoder goes with --photos or --unlabelled: a feature store has its encoder already, and "
            "train.text_encoder is that of the sentences"
        )
    if photos is not None and (features or annotations or val):
        raise VmrError(
            "--photos goes without a feature store, --annotations and --val: videos are composed of the "
            "photos, and some photos are held out to validate on (train.val_fraction)"
        )
    if photos is None and captions is not None:
        raise VmrError("--captions goes with --photos FOLDER: name the folder of the photos too")
    if photos is None and features is None:
        raise VmrError("there is nothing to train on: name a feature store and --annotations, or --photos")
    if photos is None and annotations is None and not unlabelled:
        raise VmrError(f"{features} needs --annotations FILE, which says what is seen when, or --unlabelled")


def _show_epoch(bar: Callable[..., None], row: dict[str, float]) -> None:
    text = f"loss {row['loss/total']:.3f}"
    if "miou" in row:
        text += f", R@1 IoU=0.5 {row['r1_at_0.5']:.1f}, mIoU {row['miou']:.1f}"
    bar(row["epoch"], text, row["epochs"])


def _show(result: TrainResult, features: str) -> None:
    if result.without_features:
        print_labelled("note:", f"{result.without_features} annotations have no video in {features}")
    if result.outside:
        print_labelled("note:", f"{result.outside} annotations lie outside their video and were left out")
    print_line(
        f"{result.train_queries} queries trained on, {result.val_queries} validated on; best epoch "
        f"{result.metrics['epoch']:.0f}: R@1 IoU=0.5 {result.metrics['r1_at_0.5']:.1f}, "
        f"mIoU {result.metrics['miou']:.1f} -> {result.best}"
    )
