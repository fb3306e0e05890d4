"""The metrics of an evaluation as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from vmr_ray.evaluation.metrics import metric_label


def metrics_table(result: Any) -> Table:
    """An Evaluation as a table: the model and its two controls."""
    table = Table(title=f"{result.queries} queries on {result.videos} videos, percent")
    table.add_column("")
    columns = {
        "model": result.model,
        "best constant span": result.constant,
        "videos shuffled": result.shuffled,
    }
    for name in columns:
        table.add_column(name, justify="right")
    for key in result.model:
        row = (f"{found[key]:.1f}" if key in found else "-" for found in columns.values())
        table.add_row(metric_label(key), *row)
    return table


def corpus_table(corpus: Any) -> Table:
    """A Corpus as a table: the whole search, and its first stage."""
    table = Table(title=f"{corpus.queries} queries on all {corpus.videos} videos of the index, percent")
    table.add_column("")
    table.add_column("model", justify="right")
    for key, value in corpus.metrics.items():
        table.add_row(metric_label(key), f"{value:.1f}")
    table.add_row("stage 1 finds the video", f"{corpus.candidate_recall:.1f}")
    return table
