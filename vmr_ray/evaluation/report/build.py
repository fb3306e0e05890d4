"""Collect what the report shows besides the metrics, and write it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray import __version__
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.inputs import EvaluationInputs
from vmr_ray.evaluation.report.cases import Case, choose_cases
from vmr_ray.evaluation.report.measurements import Answers
from vmr_ray.evaluation.report.write import write_report
from vmr_ray.evaluation.result import Evaluation
from vmr_ray.model.inputs import Example
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import membership_curves
from vmr_ray.storage import absolute, join, read_json, redact_credentials


def build_report(
    directory: str, evaluation: Evaluation, table: pa.Table, inputs: EvaluationInputs, index: str | None
) -> None:
    """Write the report on `evaluation` into a directory or URI.

    Args:
        table: the answers, see `retrieval.answer_queries`.
        index: path of the index that was searched, if any.
    """
    columns = ("video_id", "duration", "query", "truth", "predicted", "shuffled")
    answers = Answers(*(table[name].to_pylist() for name in columns))
    write_report(
        directory,
        evaluation,
        answers,
        _with_membership(choose_cases(answers), inputs),
        inputs.info.constants,
        _what_was_measured(evaluation, inputs, index),
        _training_history(inputs.checkpoint),
    )


def _with_membership(cases: Sequence[Case], inputs: EvaluationInputs) -> list[Case]:
    """The cases with their membership curves, which are computed for these queries only."""
    predictor = load_predictor(inputs.checkpoint)
    result = []
    for case in cases:
        video = inputs.store.read(inputs.files[case.video_id])
        queries, tokens = [case.query], list(predictor.text([case.query]))
        example = Example(
            case.video_id, case.duration, video.features, video.edges, queries, tokens, [case.truth]
        )
        for curve in membership_curves(predictor, example) or [np.zeros(0)]:
            result.append(case.with_membership(video.edges.tolist(), curve.tolist()))
    return result


def _what_was_measured(evaluation: Evaluation, inputs: EvaluationInputs, index: str | None) -> dict[str, Any]:
    """The page's last section."""
    info, counts = inputs.info, inputs.annotations.counts()
    paths = {
        "checkpoint": inputs.checkpoint,
        "features": inputs.features,
        "annotations": inputs.annotations.path,
        "index": index,
    }
    left_out = {"video_not_in_the_feature_store": evaluation.without_features, **counts.dropped}
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        **{name: redact_credentials(path) for name, path in paths.items() if path is not None},
        "version": info.version,
        "epoch": info.epoch,
        "frame_encoder": f"{info.frame_encoder} at {info.sampling}",
        "text_encoder": info.text_encoder,
        "embedded_videos": len(inputs.files),
        "annotation_format": inputs.annotations.format,
        "queries": evaluation.queries,
        "videos": evaluation.videos,
        "queries_left_out": {name: count for name, count in left_out.items() if count},
        "queries_clipped": dict(counts.clipped),
        "settings": inputs.config.model_dump(mode="json"),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "command": redact_credentials(command),
        "vmr_ray": __version__,
    }


def _training_history(checkpoint: str) -> list[dict[str, float]] | None:
    """The rows of RUN/history.json, if the checkpoint is RUN/best or RUN/last; None if it cannot be read."""
    run = absolute(checkpoint).rstrip("/").rpartition("/")[0]
    try:
        return read_json(join(run, "history.json"), "") or None
    except (OSError, VmrError):  # only the curves of the training are missing then
        return None
