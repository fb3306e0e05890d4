"""`vmr evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmr_ray.cli.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    out,
    print_json,
    print_labelled,
    print_line,
    read_config,
    waiting,
)


def evaluate(
    features: Annotated[str, typer.Argument(help="feature store")],
    annotations: Annotated[Path, typer.Option("--annotations", "-a", help="annotations to test on")],
    checkpoint: Annotated[str, typer.Option(help="checkpoint directory, such as run/best")],
    to: Annotated[
        str | None, typer.Option("--out", "-o", help="directory for metrics.json and predictions.parquet")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(help="directory or URI for report.html: curves, errors, best and worst answers"),
    ] = None,
    index_: Annotated[
        str | None,
        typer.Option("--index", "-i", help="also ask the queries of all videos of this index at once"),
    ] = None,
    max_queries: Annotated[
        int | None, typer.Option(help="limit to the queries that are asked of the index")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint, next to two controls.

    Prints R@1 and R@5 at IoU 0.3/0.5/0.7 and mIoU. The controls are the best constant span, and the same
    model with the videos shuffled among the queries.
    """
    from vmr_ray.evaluation.evaluate import evaluate as run
    from vmr_ray.evaluation.tables import corpus_table, metrics_table, presence_table

    settings = read_config(config, set_, {"evaluate.corpus_queries": max_queries})
    with waiting("evaluating"):
        result = run(
            features, annotations, checkpoint, to, settings.evaluate, report, index_, settings.search
        )
    if as_json:
        print_json(asdict(result))
        return
    out.print(metrics_table(result))
    if result.presence:
        out.print(presence_table(result.presence))
    if result.corpus:
        out.print(corpus_table(result.corpus))
    if report is not None:
        print_line(f"report -> {report}/report.html")
    if result.without_features:
        print_labelled("note:", f"{result.without_features} annotations have no video in {features}")
