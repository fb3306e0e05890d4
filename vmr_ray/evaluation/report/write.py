"""Evaluation -> `report.html`, the same numbers as `report.json`, and the figures as PNG."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vmr_ray.evaluation.metrics import metric_label
from vmr_ray.evaluation.report import plots
from vmr_ray.evaluation.report.cases import Case
from vmr_ray.evaluation.report.measurements import Answers, boundary_errors, measures
from vmr_ray.evaluation.report.plots import Picture
from vmr_ray.storage import write_bytes

if TYPE_CHECKING:
    from vmr_ray.evaluation.evaluate import Evaluation


def write_report(
    directory: str,
    evaluation: Evaluation,
    answers: Answers,
    cases: Sequence[Case],
    constants: dict[str, Any],
    measured: dict[str, Any],
    history: list[dict[str, float]] | None = None,
) -> None:
    """Write the report into `directory`, a local one or an object-storage URI.

    Args:
        answers: to the evaluation's queries.
        constants: of the checkpoint, see `controls.fit_constants`.
        measured: what the page's last section lists, by name; `epoch` is the checkpoint's.
        history: the rows of the training's validations, if they are at hand.
    """
    metrics = {name: getattr(evaluation, name) for name in ("model", "constant", "shuffled")}
    found = measures(answers, constants)
    corpus = asdict(evaluation.corpus) if evaluation.corpus else None
    numbers = {"measured": measured, "metrics": metrics, "corpus": corpus, **found}
    numbers |= {"cases": [asdict(case) for case in cases], "history": history}

    overall = {
        "recall": plots.recall_curve(found["recall_curve"]),
        "length": plots.bins("length", found["by_length"], "length of the moment"),
        "position": plots.bins("position", found["by_position"], "place of the moment's centre in the video"),
        "boundaries": _boundaries(answers, found["boundaries"]),
    }
    curves = plots.training(history, measured["epoch"]) if history else []
    drawn = [(case, plots.timeline(f"case-{i:02d}-{case.kind}", case)) for i, case in enumerate(cases, 1)]
    template = _environment().get_template("page.html")
    page = template.render(
        evaluation=evaluation,
        verdict=verdict(metrics),
        labels=plots.LABELS,
        pictures=overall,
        training=curves,
        drawn=drawn,
        **numbers,
    )

    files = {"report.json": json.dumps(numbers, indent=1).encode(), "report.html": page.encode()}
    for picture in [*overall.values(), *curves, *(p for _, p in drawn)]:
        files |= {f"{picture.name}.png": picture.light, f"{picture.name}-dark.png": picture.dark}
    for name, data in files.items():
        write_bytes(f"{directory}/{name}", data)


def verdict(metrics: dict[str, dict[str, float]]) -> str:
    """One sentence: whether the model is above its controls, and where it is not."""
    model = metrics["model"]
    below = {
        control: [k for k in model if model[k] <= metrics[control].get(k, -1.0)]
        for control in ("constant", "shuffled")
    }
    if not any(below.values()):
        return "The model is above both controls in every metric."
    above = len(model) - len({key for keys in below.values() for key in keys})
    told = "; ".join(
        f"not above “{plots.LABELS[control]}” in {', '.join(map(metric_label, keys))}"
        for control, keys in below.items()
        if keys
    )
    return f"The model is above both controls in {above} of {len(model)} metrics; {told}."


def _boundaries(answers: Answers, found: dict[str, Any]) -> Picture:
    errors, overlap = boundary_errors(answers)
    part = found["overlap"]
    told = "; ".join(
        f"{name}: median {part[name]['q50']:+.1f} s, half of them {part[name]['q25']:+.1f} to "
        f"{part[name]['q75']:+.1f} s"
        for name in ("start", "end")
        if part[name]
    )
    alt = f"Histograms of the errors of {part['queries']} starts and ends. {told}."
    return plots.boundary_errors(errors[overlap], alt)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vmr_ray.evaluation", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["metric"] = metric_label
    environment.filters["seconds"] = plots.seconds
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment
