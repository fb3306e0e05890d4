"""Evaluation -> `report.html`, the same numbers as `report.json`, and the figures as PNG."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vmr_ray.evaluation.controls import SYSTEMS
from vmr_ray.evaluation.metrics import metric_label
from vmr_ray.evaluation.presence import PRESENCE_LABELS
from vmr_ray.evaluation.report.cases import Case
from vmr_ray.evaluation.report.measurements import Answers, boundary_errors, measure
from vmr_ray.evaluation.report.plots import (
    Picture,
    format_span,
    plot_bins,
    plot_boundary_errors,
    plot_recall,
    plot_reliability,
    plot_timeline,
    plot_training,
)
from vmr_ray.evaluation.result import Evaluation
from vmr_ray.storage import join, write_bytes

OPTIONAL = ("corpus", "qvhighlights", "presence")  # fields of an Evaluation that may be None


def write_report(
    directory: str,
    evaluation: Evaluation,
    answers: Answers,
    cases: Sequence[Case],
    constants: dict[str, Any],
    measured: dict[str, Any],
    history: list[dict[str, float]] | None = None,
) -> None:
    """Write the report into `directory`, a path or a URI.

    Args:
        answers: of the evaluation's queries.
        constants: of the checkpoint, see `controls.fit_constants`.
        measured: what the page's last section lists, by name; `epoch` is the checkpoint's.
        history: the rows of the training's validations, if they are known.
    """
    metrics = {name: getattr(evaluation, name) for name in SYSTEMS}
    measurements = measure(answers, constants)
    optional = {name: asdict(value) if (value := getattr(evaluation, name)) else None for name in OPTIONAL}
    numbers = {"measured": measured, "metrics": metrics, **optional, **measurements}
    numbers |= {"cases": [asdict(case) for case in cases], "history": history}

    overall = {
        "recall": plot_recall(measurements["recall_curve"]),
        "length": plot_bins("length", measurements["by_length"], "length of the moment"),
        "position": plot_bins(
            "position", measurements["by_position"], "place of the moment's centre in the video"
        ),
        "boundaries": _boundaries(answers, measurements["boundaries"]),
    }
    if evaluation.presence and evaluation.presence.reliability:
        overall["reliability"] = plot_reliability(evaluation.presence.reliability)
    curves = plot_training(history, measured["epoch"]) if history else []
    drawn = [(case, plot_timeline(f"case-{i:02d}-{case.kind}", case)) for i, case in enumerate(cases, 1)]
    template = _environment().get_template("page.html")
    page = template.render(
        evaluation=evaluation,
        verdict=verdict(metrics),
        labels=SYSTEMS,
        presence_labels=PRESENCE_LABELS,
        summary=evaluation.qvhighlights.summary if evaluation.qvhighlights else [],
        pictures=overall,
        training=curves,
        drawn=drawn,
        **numbers,
    )

    files = {"report.json": json.dumps(numbers, indent=1).encode(), "report.html": page.encode()}
    for picture in [*overall.values(), *curves, *(p for _, p in drawn)]:
        files |= {f"{picture.name}.png": picture.light, f"{picture.name}-dark.png": picture.dark}
    for name, data in files.items():
        write_bytes(join(directory, name), data)


def verdict(metrics: dict[str, dict[str, float]]) -> str:
    """One sentence: whether the model is above its controls, and in which metrics it is not."""
    model = metrics["model"]
    below = {
        control: [k for k in model if model[k] <= metrics[control].get(k, -1.0)]
        for control in ("constant", "shuffled")
    }
    if not any(below.values()):
        return "The model is above both controls in every metric."
    above = len(model) - len({key for keys in below.values() for key in keys})
    exceptions = "; ".join(
        f"not above “{SYSTEMS[control]}” in {', '.join(map(metric_label, keys))}"
        for control, keys in below.items()
        if keys
    )
    return f"The model is above both controls in {above} of {len(model)} metrics; {exceptions}."


def _boundaries(answers: Answers, boundaries: dict[str, Any]) -> Picture:
    errors, overlap = boundary_errors(answers)
    part = boundaries["overlap"]
    quantiles = "; ".join(
        f"{name}: median {part[name]['q50']:+.1f} s, half of them {part[name]['q25']:+.1f} to "
        f"{part[name]['q75']:+.1f} s"
        for name in ("start", "end")
        if part[name]
    )
    alt = f"Histograms of the errors of {part['queries']} starts and ends. {quantiles}."
    return plot_boundary_errors(errors[overlap], alt)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vmr_ray.evaluation", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["metric"] = metric_label
    environment.filters["seconds"] = format_span
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment
