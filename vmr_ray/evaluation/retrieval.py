"""The queries of an evaluation, answered over the cluster (Ray Data)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from vmr_ray.encoders import check_texts
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.absent import ABSENT
from vmr_ray.evaluation.inputs import EvaluationInputs
from vmr_ray.evaluation.qvhighlights import clip_scores
from vmr_ray.features import FeatureStore
from vmr_ray.model.inputs import Example
from vmr_ray.model.loader import load_predictor
from vmr_ray.model.predictor import Predictor, membership_curves, retrieve

_SPANS = pa.list_(pa.list_(pa.float64()))
_SCORES = pa.list_(pa.float64())
_ANSWER = pa.schema(
    [
        ("row", pa.int64()),  # the query's place in the table
        ("video_id", pa.string()),
        ("duration", pa.float64()),  # seconds
        ("query", pa.string()),
        ("truth", _SPANS),  # [start, end] in seconds
        ("predicted", _SPANS),  # ranked [start, end, score]
        ("shuffled", _SPANS),  # the same, answered from another video
        # The best in the own video for a sentence of `absent.ABSENT`; null if they cannot be encoded.
        ("absent_score", pa.float64()),
        ("clip_scores", _SCORES),  # of QVHighlights' clips; empty without saliency or membership
        ("shuffled_clip_scores", _SCORES),
    ]
)


def answer_queries(inputs: EvaluationInputs) -> pa.Table:
    """One row a query, video by video: `_ANSWER` without `row`.

    For QVHighlights with the true `saliency` `[clips, annotators]`; else without the clips' scores.
    """
    import ray

    from vmr_ray.cluster import autoscaling_pool

    items = _items(inputs)
    tasks = math.ceil(len(items) / inputs.config.batch_videos)
    batches = (
        ray.data.from_items(items, override_num_blocks=min(tasks, 1000))
        .map_batches(
            _AnswerQueries,
            batch_size=inputs.config.batch_videos,
            batch_format="pyarrow",
            fn_constructor_args=(
                inputs.checkpoint,
                inputs.store.root,
                inputs.answers,
                inputs.config.nms,
                _can_encode(inputs.info.text_encoder, ABSENT),
            ),
            compute=autoscaling_pool(tasks),
            num_cpus=1,
        )
        .iter_batches(batch_size=None, batch_format="pyarrow")
    )
    table = pa.concat_tables(batches).sort_by("row").drop_columns(["row"])
    if not inputs.is_qvhighlights:
        return table.drop_columns(["clip_scores", "shuffled_clip_scores"])
    saliency = [a.saliency for rows in inputs.groups.values() for a in rows]
    values = [None if clips is None else clips.tolist() for clips in saliency]
    return table.append_column("saliency", pa.array(values, pa.list_(pa.list_(pa.float32()))))


def _can_encode(text_encoder: str, texts: Sequence[str]) -> bool:
    """Whether the encoder takes any text: of imported states only those of the annotations are known."""
    try:
        check_texts(text_encoder, texts)
    except VmrError:
        return False
    return True


def _items(inputs: EvaluationInputs) -> list[dict[str, Any]]:
    """One item a video: its files and queries, and the files of the video for the shuffled control."""
    items, first_row = [], 0
    for video, group in inputs.groups.items():
        items.append(
            {
                "first_row": first_row,
                "files": list(inputs.files[video]),
                "other_files": list(inputs.files[inputs.others[video]]),
                "queries": [a.query for a in group],
                "spans": [[list(s) for s in a.spans] for a in group],
                "clips": [0 if a.saliency is None else len(a.saliency) for a in group],
            }
        )
        first_row += len(group)
    return items


class _AnswerQueries:
    """Items of `_items` -> one row a query, answered from its own video and from the other one."""

    def __init__(self, checkpoint: str, root: str, answers: int, nms: float, asks_absent: bool):
        import torch

        torch.set_num_threads(1)
        self.checkpoint, self.answers, self.nms, self.asks_absent = checkpoint, answers, nms, asks_absent
        self.store = FeatureStore.open(root)

    @cached_property
    def predictor(self) -> Predictor:
        return load_predictor(self.checkpoint)  # by the first call, see `_Encode` in embed.py

    @cached_property
    def _absent_tokens(self) -> list[np.ndarray]:
        return list(self.predictor.text(list(ABSENT)))

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = batch.to_pylist()
        texts = [query for item in items for query in item["queries"]]
        tokens = dict(zip(texts, self.predictor.text(texts), strict=True))
        own = [self._example(item, item["files"], tokens) for item in items]
        other = [self._example(item, item["other_files"], tokens) for item in items]
        columns = {
            "row": [item["first_row"] + i for item in items for i in range(len(item["queries"]))],
            "video_id": [e.video_id for e in own for _ in e.queries],
            "duration": [e.duration for e in own for _ in e.queries],
            "query": texts,
            "truth": [spans for e in own for spans in e.spans],
            "predicted": retrieve(self.predictor, own, self.answers, self.nms),
            "shuffled": retrieve(self.predictor, other, self.answers, self.nms),
            "absent_score": self._absent_scores(items, own),
            "clip_scores": self._clip_scores(items, own),
            "shuffled_clip_scores": self._clip_scores(items, other),
        }
        return pa.Table.from_pydict(columns, schema=_ANSWER)

    def _example(self, item: dict[str, Any], files: Sequence[str], tokens: dict[str, np.ndarray]) -> Example:
        video = self.store.read(files)
        return Example(
            video.video_id,
            video.duration,
            video.features,
            video.edges,
            item["queries"],
            [tokens[q] for q in item["queries"]],
            item["spans"],
        )

    def _absent_scores(
        self, items: list[dict[str, Any]], examples: list[Example]
    ) -> list[float] | list[None]:
        """As many for each video as it has queries; over all videos the sentences take turns."""
        if not self.asks_absent:
            return [None for example in examples for _ in example.queries]
        asked = []
        for item, example in zip(items, examples, strict=True):
            numbers = [(item["first_row"] + i) % len(ABSENT) for i in range(len(example.queries))]
            tokens = [self._absent_tokens[number] for number in numbers]
            asked.append(replace(example, queries=[ABSENT[number] for number in numbers], tokens=tokens))
        return [spans[0][2] for spans in retrieve(self.predictor, asked, 1, self.nms)]

    def _clip_scores(self, items: list[dict[str, Any]], examples: list[Example]) -> list[list[float]]:
        """Of every query the scores of its clips; none for a query without saliency or without membership."""
        scores: list[list[float]] = []
        for item, example in zip(items, examples, strict=True):
            curves = membership_curves(self.predictor, example) if any(item["clips"]) else []
            if not curves:
                scores += [[] for _ in item["clips"]]
                continue
            for curve, clips in zip(curves, item["clips"], strict=True):
                scores.append(clip_scores(curve, example.edges, clips).tolist())
        return scores
