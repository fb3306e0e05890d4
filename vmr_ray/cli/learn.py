"""`vmr train`, `vmr evaluate` and `vmr reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    CheckpointOption,
    ConfigOption,
    JsonOption,
    SetOption,
    app,
    as_overrides,
    err,
    out,
    print_json,
    progress_bar,
    read_config,
    show_quarantined,
    waiting,
)
from vmr_ray.evaluation.tables import corpus_table, metrics_table


@app.command()
def train(
    features: Annotated[str, typer.Argument(help="feature store")],
    annotations: Annotated[
        Path,
        typer.Option(
            "--annotations", "-a", help="JSONL/CSV with video, query, start, end, or a benchmark's file"
        ),
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="run directory or URI; the same one resumes")],
    val: Annotated[
        Path | None, typer.Option(help="validation annotations; default: hold out some videos")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="data-parallel training processes")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the annotated videos")] = None,
    gpu: Annotated[bool | None, typer.Option("--gpu/--cpu", help="one GPU a worker")] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard or mlflow: log the metrics of every epoch there too; repeatable"),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the cross-interaction network. Run it again to resume after an interruption."""
    from vmr_ray.training.train import train as run

    flags = {"train.workers": workers, "train.epochs": epochs, "train.use_gpu": gpu, "train.track": track}
    settings = read_config(config, set_, flags)
    with progress_bar("training", settings.train.epochs) as bar:

        def report(row: dict[str, float]) -> None:
            text = f"loss {row['loss/total']:.3f}"
            if "miou" in row:
                text += f", R@1 IoU=0.5 {row['r1_at_0.5']:.1f}, mIoU {row['miou']:.1f}"
            bar(row["epoch"], text, row["epochs"])

        result = run(features, annotations, to, settings, val, report)
    if as_json:
        print_json({k: v for k, v in asdict(result).items() if k != "history"})
        return
    if result.without_features:
        err.print(f"[yellow]note:[/] {result.without_features} annotations have no video in {features}")
    if result.outside:
        err.print(f"[yellow]note:[/] {result.outside} annotations lie outside their video and were left out")
    out.print(
        f"{result.train_queries} queries trained on, {result.val_queries} validated on; best epoch "
        f"{result.metrics['epoch']:.0f}: R@1 IoU=0.5 {result.metrics['r1_at_0.5']:.1f}, "
        f"mIoU {result.metrics['miou']:.1f} -> {result.best}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def evaluate(
    features: Annotated[str, typer.Argument(help="feature store")],
    annotations: Annotated[Path, typer.Option("--annotations", "-a", help="annotations to test on")],
    checkpoint: CheckpointOption,
    to: Annotated[
        str | None, typer.Option("--out", "-o", help="directory for metrics.json and predictions.parquet")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(help="directory or URI for report.html: curves, errors, best and worst"),
    ] = None,
    index_: Annotated[
        str | None, typer.Option("--index", "-i", help="index to ask the queries of, all its videos at once")
    ] = None,
    max_queries: Annotated[int | None, typer.Option(help="queries asked of the index at most")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint: R@1 and R@5 at IoU 0.3/0.5/0.7 and mIoU, beside what needs no model."""
    from vmr_ray.evaluation.evaluate import evaluate as run

    settings = read_config(config, set_, {"evaluate.corpus_queries": max_queries})
    with waiting("evaluating"):
        result = run(
            features, annotations, checkpoint, to, settings.evaluate, report, index_, settings.search
        )
    if as_json:
        print_json(asdict(result))
        return
    out.print(metrics_table(result))
    if result.corpus:
        out.print(corpus_table(result.corpus))
    if report is not None:
        out.print(f"report -> {report}/report.html", highlight=False, soft_wrap=True, markup=False)
    if result.without_features:
        err.print(f"[yellow]note:[/] {result.without_features} annotations have no video in {features}")


@app.command()
def reproduce(
    recipe: Annotated[Path, typer.Argument(help="recipe, such as configs/charades_sta_i3d.yaml")],
    features: Annotated[
        list[Path],
        typer.Option(
            "--features", "-f", help="folder that holds the recipe's sources, or each of them; repeatable"
        ),
    ],
    annotations: Annotated[
        Path, typer.Option("--annotations", "-a", help="folder of the benchmark's annotation files")
    ],
    to: Annotated[str, typer.Option("--out", "-o", help="directory; the same one resumes")],
    workers: Annotated[int | None, typer.Option(help="data-parallel training processes")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the annotated videos")] = None,
    gpu: Annotated[bool | None, typer.Option("--gpu/--cpu", help="one GPU a worker")] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a benchmark from published features: import, train, evaluate. Run it again to resume."""
    from vmr_ray.workflows.reproduce import load_recipe
    from vmr_ray.workflows.reproduce import reproduce as run

    flags = as_overrides({"train.workers": workers, "train.epochs": epochs, "train.use_gpu": gpu})
    settings = load_recipe(recipe, [*(set_ or []), *flags])
    with progress_bar("reproducing", None) as bar:
        result = run(
            settings,
            features,
            annotations,
            to,
            lambda done, todo: bar(done, "videos imported", todo),
            lambda row: bar(row["epoch"], f"epochs, loss {row['loss/total']:.3f}", row["epochs"]),
        )
    if as_json:
        print_json(asdict(result.evaluation) | {"imported": asdict(result.imported)})
        return
    show_quarantined(result.imported.quarantined)
    out.print(metrics_table(result.evaluation))
    if result.evaluation.without_features:
        err.print(f"[yellow]note:[/] {result.evaluation.without_features} annotations have no features")
