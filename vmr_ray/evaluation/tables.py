"""The metrics of an evaluation as tables for a terminal."""

from __future__ import annotations

from rich.table import Table

from vmr_ray.evaluation.controls import SYSTEMS
from vmr_ray.evaluation.metrics import metric_label
from vmr_ray.evaluation.presence import PRESENCE_LABELS
from vmr_ray.evaluation.result import CorpusMetrics, Evaluation, PresenceMetrics, QVHighlightsMetrics


def metrics_table(evaluation: Evaluation) -> Table:
    """The model and its two controls; for QVHighlights also that benchmark's own metrics."""
    table = Table(title=f"{evaluation.queries} queries on {evaluation.videos} videos, percent")
    table.add_column("")
    for label in SYSTEMS.values():
        table.add_column(label, justify="right")
    sections: list[tuple[Evaluation | QVHighlightsMetrics, list[str]]] = [
        (evaluation, list(evaluation.model))
    ]
    if evaluation.qvhighlights:
        sections.append((evaluation.qvhighlights, evaluation.qvhighlights.summary))
    for metrics, names in sections:
        for name in names:
            row = (_percent(getattr(metrics, column).get(name)) for column in SYSTEMS)
            table.add_row(metric_label(name), *row)
        table.add_section()
    return table


def presence_table(presence: PresenceMetrics) -> Table:
    """Whether the model knows what is not there."""
    table = Table(title="queries that are not shown, percent")
    for name in ("", "other videos", "never shown"):
        table.add_column(name, justify="right" if name else "left")
    for name, label in PRESENCE_LABELS.items():
        if name in presence.other_videos:
            table.add_row(label, *(_percent(m.get(name)) for m in (presence.other_videos, presence.absent)))
    if presence.r1_at_05_lost is not None:
        table.add_row("R@1 IoU=0.5 lost by that", f"{presence.r1_at_05_lost:.1f}", "")
    return table


def corpus_table(corpus: CorpusMetrics) -> Table:
    """The whole search, and its first stage."""
    table = Table(title=f"{corpus.queries} queries on all {corpus.videos} videos of the index, percent")
    table.add_column("")
    table.add_column("model", justify="right")
    for name, value in corpus.metrics.items():
        table.add_row(metric_label(name), f"{value:.1f}")
    table.add_row("stage 1 finds the video", f"{corpus.candidate_recall:.1f}")
    for name, value in (corpus.presence or {}).items():
        table.add_row(f"is it in any video: {PRESENCE_LABELS[name]}", f"{value:.1f}")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
