"""What an evaluation measured. All metrics are percentages by name."""

from __future__ import annotations

from dataclasses import dataclass

_QVHIGHLIGHTS_SUMMARY = (
    *("map_at_0.5", "map_at_0.75", "map", "short_map", "middle_map", "long_map"),
    *("hl_map_very_good", "hl_hit1_very_good"),
)


@dataclass(frozen=True)
class PresenceMetrics:
    """How well the model knows whether what a query describes is shown at all.

    Queries in videos that show it are compared with about as many in videos that do not.

    other_videos: the same queries, each in another video.
    absent: sentences about things that hardly any video shows, in the queries' own videos; empty if the text
        encoder has imported states, of the annotations' texts only.
        Of both, percentages: `auroc`, `auprc`, `rejection_at_95` and `rejection_at_99` (absent queries that
        are rejected where so many of the shown ones are kept). With a calibrated checkpoint also `ece`, the
        expected calibration error, and `rejected`, the absent queries below its `min_probability`.
    r1_at_05_lost: points of R@1 IoU=0.5 that `min_probability` costs; None without a calibration.
    reliability: the diagram of `other_videos`, see `presence.reliability`; empty without a calibration.
    """

    other_videos: dict[str, float]
    absent: dict[str, float]
    r1_at_05_lost: float | None
    reliability: list[dict[str, float]]


@dataclass(frozen=True)
class CorpusMetrics:
    """Search in a whole index.

    metrics: R@k of the whole search; a hit needs the right video.
    candidate_recall: percentage of the queries whose video is among the candidates of stage 1.
    candidates: videos among the candidates of stage 1, mean of the queries.
    queries: how many were searched for.
    annotated: queries whose video is in the index; `queries` were drawn from these.
    not_indexed: queries whose video is not in the index.
    videos: in the index.
    presence: percentages, `auroc`, `ece` and `rejection_at_95` as in `PresenceMetrics`: of the answers'
        probability that anything fits, with the query's video in the index and without it. None without a
        calibrated checkpoint.
    """

    metrics: dict[str, float]
    candidate_recall: float
    candidates: float
    queries: int
    annotated: int
    not_indexed: int
    videos: int
    presence: dict[str, float] | None = None


@dataclass(frozen=True)
class QVHighlightsMetrics:
    """The benchmark's own metrics (see `evaluation.qvhighlights`), of the model and of the two controls.

    highlight_queries: how many queries the highlight metrics (`hl_...`) are the mean of. 0 if no query has
    saliency, or the model has no membership; the metrics are left out then. The constant has none at all.
    """

    model: dict[str, float]
    constant: dict[str, float]
    shuffled: dict[str, float]
    highlight_queries: int

    @property
    def summary(self) -> list[str]:
        """The metrics that papers report, besides R@1, which every evaluation has."""
        return [name for name in _QVHIGHLIGHTS_SUMMARY if name in self.model]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of the model and of two controls, on the same queries.

    constant: the constant spans that fit the training set best.
    shuffled: the same model, each query answered from another video.
    without_features: annotations that were left out because their video is not in the feature store.
    version: of the checkpoint, the checksum of its weights.
    corpus: if an index was given.
    qvhighlights: if the annotations are in that benchmark's format.
    presence: whether the model knows what is not there, unless all videos have the same queries.
    """

    model: dict[str, float]
    constant: dict[str, float]
    shuffled: dict[str, float]
    queries: int
    videos: int
    without_features: int
    checkpoint: str
    version: str
    corpus: CorpusMetrics | None = None
    qvhighlights: QVHighlightsMetrics | None = None
    presence: PresenceMetrics | None = None
