"""What an evaluation reads, opened and checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmr_ray.annotations import AnnotationSet, AnnotationSource, load_annotations
from vmr_ray.annotations.video_ids import by_video
from vmr_ray.config import EvaluateConfig
from vmr_ray.encoders import check_texts
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.controls import derangement
from vmr_ray.evaluation.metrics import MAP_WINDOWS
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import CheckpointInfo, load_info
from vmr_ray.schema import Annotation


@dataclass(frozen=True)
class EvaluationInputs:
    """The opened inputs.

    files: the addresses of every embedded video's chunks.
    groups: the annotations of every embedded video, in the order of the video_ids.
    """

    features: str
    checkpoint: str
    config: EvaluateConfig
    annotations: AnnotationSet
    info: CheckpointInfo
    store: FeatureStore
    files: dict[str, tuple[str, ...]]
    groups: dict[str, list[Annotation]]

    @cached_property
    def others(self) -> dict[str, str]:
        """The other video from which the shuffled control answers a video's queries."""
        videos = list(self.groups)
        return dict(zip(videos, (videos[i] for i in derangement(len(videos))), strict=True))

    @property
    def is_qvhighlights(self) -> bool:
        return self.annotations.format == "qvhighlights"

    @property
    def answers(self) -> int:
        """How many ranked spans of a query the metrics need."""
        return max(*self.config.top_k, MAP_WINDOWS if self.is_qvhighlights else 1)


def open_inputs(
    features: str | Path, annotations: AnnotationSource, checkpoint: str | Path, config: EvaluateConfig
) -> EvaluationInputs:
    """Open and check the inputs.

    Raises:
        VmrError: an input is missing or malformed, the features are not of the checkpoint's kind, or fewer
            than two annotated videos are embedded (the shuffled control needs two).
    """
    info = load_info(checkpoint)
    store = FeatureStore.open(str(features))
    info.check_features(store.spec, str(features))
    annotation_set = load_annotations(annotations)
    check_texts(info.text_encoder, (a.query for a in annotation_set.annotations))
    _check_annotators(annotation_set)
    files = store.files()
    groups = by_video(annotation_set.annotations, files)
    if len(groups) < 2:
        raise VmrError(
            f"{len(groups)} of the annotated videos of {annotation_set.path} are in the feature store "
            f"{features} ({len(files)} videos there), at least 2 are needed: embed them, and check the file "
            "names"
        )
    groups = {video: groups[video] for video in sorted(groups)}
    return EvaluationInputs(
        str(features), str(checkpoint), config, annotation_set, info, store, files, groups
    )


def _check_annotators(annotations: AnnotationSet) -> None:
    numbers = {a.saliency.shape[1] for a in annotations.annotations if a.saliency is not None}
    if len(numbers) > 1:
        raise VmrError(
            f"{annotations.path}: its rows have saliency scores of {' and '.join(map(str, sorted(numbers)))} "
            "annotators: give every clip the scores of the same number of annotators"
        )
