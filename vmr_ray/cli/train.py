"""`vmr train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    EpochsOption,
    GpuOption,
    JsonOption,
    SetOption,
    WorkersOption,
    print_json,
    print_labelled,
    print_line,
    progress_bar,
    read_config,
)


def train(
    features: Annotated[str, typer.Argument(help="feature store")],
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations", "-a", help="JSONL/CSV with video, query, start, end, or a benchmark's file"
        ),
    ],
    to: Annotated[
        str, typer.Option("--out", "-o", help="run: a directory or URI; give the same one to resume")
    ],
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
    """Train the cross-interaction network.

    Run the same command again to resume after an interruption.
    """
    from vmr_ray.training.train import train as run

    flags = {"train.workers": workers, "train.epochs": epochs, "train.use_gpu": gpu, "train.track": track}
    settings = read_config(config, set_, flags)
    with progress_bar("training", settings.train.epochs) as bar:

        def show_epoch(row: dict[str, float]) -> None:
            text = f"loss {row['loss/total']:.3f}"
            if "miou" in row:
                text += f", R@1 IoU=0.5 {row['r1_at_0.5']:.1f}, mIoU {row['miou']:.1f}"
            bar(row["epoch"], text, row["epochs"])

        result = run(features, annotations, to, settings, val, show_epoch)
    if as_json:
        print_json({k: v for k, v in asdict(result).items() if k != "history"})
        return
    if result.without_features:
        print_labelled("note:", f"{result.without_features} annotations have no video in {features}")
    if result.outside:
        print_labelled("note:", f"{result.outside} annotations lie outside their video and were left out")
    print_line(
        f"{result.train_queries} queries trained on, {result.val_queries} validated on; best epoch "
        f"{result.metrics['epoch']:.0f}: R@1 IoU=0.5 {result.metrics['r1_at_0.5']:.1f}, "
        f"mIoU {result.metrics['miou']:.1f} -> {result.best}"
    )
