"""What search without any training finds, with its controls.

    python -m benchmarks.untrained --data SLIDES/val --json untrained.json

SLIDES/val holds `moments.jsonl` and the videos that it names: `python -m benchmarks.slideshows` makes them
from captioned photos. --annotations takes another file of annotations, in any format that `vmr train` reads.

`similarity` is `vmr index` without a checkpoint: by default the encoder `everyday`, with --encoder another
one. `no_shots` is the same without looking for cuts. The controls: `constant`, the constant spans that fit
these very annotations best (so they are better than any that could be known in advance), `middle_third` of
the video, and `shuffled`, the similarity's answers for other videos. The interval is a bootstrap over videos,
because the queries of a video are not independent.

--photos adds the row `photos`: a network that `vmr train --photos` trains on captioned photos, which should
be others than those that the videos show.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.common.output import Figures, JsonOption, print_line, print_table, run_command, write_figures
from benchmarks.common.photos import photos_row
from vmr_ray.annotations import AnnotationSet, load_annotations
from vmr_ray.annotations.video_ids import by_video
from vmr_ray.cluster import quiet
from vmr_ray.config import EmbedConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.controls import constant_metrics, derangement, fit_constants
from vmr_ray.evaluation.metrics import best_iou, moment_metrics
from vmr_ray.features import FeatureStore
from vmr_ray.model.inputs import Example
from vmr_ray.model.predictor import retrieve
from vmr_ray.model.similarity import SimilarityPredictor, similarity_checkpoint
from vmr_ray.schema import Span

METRICS = ("r1_at_0.3", "r1_at_0.5", "r1_at_0.7", "miou")
ROWS = {
    "similarity": "similarity",
    "no_shots": "without looking for cuts",
    "photos": "trained on --photos",
    "constant": "constant span, fitted here",
    "middle_third": "middle third",
    "shuffled": "videos shuffled",
}
TOP_K, NMS = 5, 0.5
RESAMPLES = 2000


def main(
    data: Annotated[Path, typer.Option(help="folder of videos, with moments.jsonl unless --annotations")],
    annotations: Annotated[Path | None, typer.Option(help="default: DATA/moments.jsonl")] = None,
    features: Annotated[
        Path | None, typer.Option(help="feature store to use and to extend; default: a temporary one")
    ] = None,
    encoder: Annotated[str, typer.Option(help="as in `vmr embed`")] = "everyday",
    photos: Annotated[Path | None, typer.Option(help="captioned photos, as in `vmr train`")] = None,
    photos_run: Annotated[
        Path | None, typer.Option(help="keep that training there, and use it again; default: a temporary one")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the videos composed of --photos")] = 3,
    json_: JsonOption = None,
) -> None:
    """Embed the videos, ask every query about its own video, print the table."""
    quiet()
    asked = load_annotations(annotations or data / "moments.jsonl")
    with tempfile.TemporaryDirectory(prefix="vmr-untrained-") as temporary:
        store = features or Path(temporary) / "features"
        embed([data], store, EmbedConfig(encoder=encoder))
        embedded = FeatureStore.open(str(store))
        figures = measure(embedded, asked, encoder)
        if photos is not None:
            run = photos_run or Path(temporary) / "photos"
            figures |= photos_row(photos, run, epochs, embedded, asked, METRICS)
    show(figures)
    write_figures(json_, figures)


def measure(store: FeatureStore, asked: AnnotationSet, encoder: str | None = None) -> Figures:
    """The metrics of all rows, and the bounds of the similarity's 95 % interval.

    Raises:
        VmrError: fewer than two of the annotated videos are in the store, or its features know no sentences.
    """
    info = similarity_checkpoint(store.spec, store.root, encoder)
    predictor = SimilarityPredictor(info)
    assert info.similarity is not None
    without_shots = info.similarity.model_copy(update={"shots": None})
    no_shots = SimilarityPredictor(info.model_copy(update={"similarity": without_shots}))
    files = store.files()
    groups = by_video(asked.annotations, files)
    if len(groups) < 2:
        raise VmrError(
            f"{asked.path} names {len(groups)} of the videos in {store.root}: at least 2 are needed"
        )
    examples = []
    for video_id, rows in groups.items():
        video = store.read(files[video_id])
        queries, spans = [row.query for row in rows], [list(row.spans) for row in rows]
        end = float(video.edges[-1])
        tokens = predictor.text(queries)
        examples.append(Example(video_id, end, video.features, video.edges, queries, tokens, spans))
    truths = [true for e in examples for true in e.spans]
    durations = [e.duration for e in examples for _ in e.spans]
    answers = _answers(predictor, examples)
    shuffled = [
        replace(example, features=examples[other].features, edges=examples[other].edges)
        for example, other in zip(examples, derangement(len(examples)), strict=True)
    ]
    first_spans = [true[0] for true in truths]
    systems = {
        "similarity": moment_metrics(answers, truths),
        "no_shots": moment_metrics(_answers(no_shots, examples), truths),
        "constant": constant_metrics(fit_constants(first_spans, durations), truths, durations),
        "middle_third": moment_metrics([[(d / 3, 2 * d / 3)] for d in durations], truths),
        "shuffled": moment_metrics(_answers(predictor, shuffled), truths),
    }
    figures = {f"{row}.{name}": metrics[name] for row, metrics in systems.items() for name in METRICS}
    video_index = [i for i, e in enumerate(examples) for _ in e.queries]
    figures |= bootstrap(best_iou(answers, truths, 1)[:, 0], np.array(video_index))
    return figures | {"videos": len(examples), "queries": len(truths)}


def _answers(predictor: SimilarityPredictor, examples: Sequence[Example]) -> list[list[Span]]:
    """The ranked spans of every query of every example."""
    return [[(s, e) for s, e, _ in ranked] for ranked in retrieve(predictor, examples, TOP_K, NMS)]


def bootstrap(ious: np.ndarray, video_index: np.ndarray) -> Figures:
    """The 95 % intervals of the similarity's metrics, from the best answers' IoU [n] and their videos [n]."""
    values = np.stack([*(ious >= t for t in (0.3, 0.5, 0.7)), ious])  # [metrics, n]
    videos = video_index.max() + 1
    sums = np.stack([np.bincount(video_index, row, videos) for row in values])  # [metrics, videos]
    counts = np.bincount(video_index, minlength=videos)
    drawn = np.random.default_rng(0).integers(0, videos, (RESAMPLES, videos))
    means = 100 * sums[:, drawn].sum(2) / counts[drawn].sum(1)  # [metrics, resamples]
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    bounds = zip(METRICS, low.tolist(), high.tolist(), strict=True)
    return {
        f"similarity.{n}_{end}": v
        for n, *both in bounds
        for end, v in zip(("low", "high"), both, strict=True)
    }


def show(figures: Figures) -> None:
    """The table, with the similarity's interval below it."""
    measured = {row: name for row, name in ROWS.items() if f"{row}.miou" in figures}
    rows = [[name, *(f"{figures[f'{row}.{m}']:.1f}" for m in METRICS)] for row, name in measured.items()]
    bounds = [f"{figures[f'similarity.{m}_low']:.1f}-{figures[f'similarity.{m}_high']:.1f}" for m in METRICS]
    rows.insert(1, ["  95 % interval", *bounds])
    print_table("without training, percent", ("R@1 at IoU", "0.3", "0.5", "0.7", "mIoU"), rows)
    print_line(f"\n{figures['queries']:.0f} queries on {figures['videos']:.0f} videos")


if __name__ == "__main__":
    run_command(main)
