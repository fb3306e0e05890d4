"""What search without annotations finds, with its controls.

    python -m benchmarks.untrained --data SLIDES/val --json untrained.json

SLIDES/val holds `moments.jsonl` and the videos that it names: `python -m benchmarks.slideshows` makes them
from captioned photos. --annotations takes another file of annotations, in any format that `vmr train` reads.

`shipped` is `vmr index` without a checkpoint: by default the encoder `everyday` with the weights that come
with the package, with --encoder another one. `similarity` is the same without these weights, `no_shots`
without looking for cuts either. `unlabelled` is what `vmr train --unlabelled` makes of the videos in the
feature store --unlabelled, `photos` what `vmr train --photos` makes of --photos. --first-answer adds
`seconds_to_first_answer`, as `python -m benchmarks.first_answer --data DATA` measures it.

The controls: `constant`, the constant spans that fit these very annotations best (so they are better than any
that could be known in advance), `middle_third` of the video, and `shuffled`, the answers of `shipped` for
other videos. The intervals are a bootstrap over videos, because the queries of a video are not independent;
`gain` is the difference between a row and `similarity` on the same videos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from safetensors.torch import load

from benchmarks.common.output import Figures, JsonOption, print_line, print_table, run_command, write_figures
from benchmarks.common.photos import photos_row
from benchmarks.first_answer import first_answer
from vmr_ray.annotations import AnnotationSet, load_annotations
from vmr_ray.annotations.video_ids import by_video
from vmr_ray.cluster import quiet
from vmr_ray.config import Config, EmbedConfig, TrainConfig
from vmr_ray.embedding.embed import embed
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.controls import constant_metrics, derangement, fit_constants
from vmr_ray.evaluation.metrics import best_iou, moment_metrics
from vmr_ray.features import FeatureStore
from vmr_ray.model.inputs import Example
from vmr_ray.model.loader import load_predictor, predictor_of
from vmr_ray.model.predictor import Predictor, retrieve
from vmr_ray.model.similarity import shipped_weights, similarity_checkpoint
from vmr_ray.schema import Span
from vmr_ray.training.unlabelled import train_unlabelled

METRICS = ("r1_at_0.3", "r1_at_0.5", "r1_at_0.7", "miou")
ROWS = {
    "shipped": "as `vmr up` searches",
    "similarity": "similarity alone",
    "no_shots": "no look at cuts",
    "unlabelled": "by --unlabelled",
    "photos": "trained on --photos",
    "constant": "constant, fitted",
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
    unlabelled: Annotated[
        Path | None, typer.Option(help="feature store of videos to train on without annotations")
    ] = None,
    unlabelled_run: Annotated[
        Path | None, typer.Option(help="keep that training there, and use it again; default: a temporary one")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the training without annotations")] = 0,
    photos: Annotated[Path | None, typer.Option(help="captioned photos, as in `vmr train`")] = None,
    photos_run: Annotated[
        Path | None, typer.Option(help="keep that training there, and use it again; default: a temporary one")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the videos composed of --photos")] = 3,
    first: Annotated[
        bool, typer.Option("--first-answer", help="also install the package, and time its first right answer")
    ] = False,
    json_: JsonOption = None,
) -> None:
    """Embed the videos, ask every query about its own video, print the table."""
    quiet()
    key = "seconds_to_first_answer"
    answered = {key: first_answer(data)[key]} if first else {}  # first, while no cluster takes the cores
    asked = load_annotations(annotations or data / "moments.jsonl")
    with tempfile.TemporaryDirectory(prefix="vmr-untrained-") as temporary:
        store = features or Path(temporary) / "features"
        embed([data], store, EmbedConfig(encoder=encoder))
        embedded = FeatureStore.open(str(store))
        predictors = {}
        if unlabelled is not None:
            run = unlabelled_run or Path(temporary) / "unlabelled"
            config = Config(train=TrainConfig(seed=seed))
            predictors["unlabelled"] = load_predictor(train_unlabelled(unlabelled, run, config, encoder).last)
        figures = measure(embedded, asked, encoder, predictors)
        if photos is not None:
            run = photos_run or Path(temporary) / "photos"
            figures |= photos_row(photos, run, epochs, embedded, asked, METRICS)
    show(figures | answered)
    write_figures(json_, figures | answered)


def measure(
    store: FeatureStore,
    asked: AnnotationSet,
    encoder: str | None = None,
    others: Mapping[str, Predictor] | None = None,
) -> Figures:
    """The metrics of all rows, and the bounds of their 95 % intervals; `others` are more rows.

    Raises:
        VmrError: fewer than two of the annotated videos are in the store, or its features know no sentences.
    """
    info = similarity_checkpoint(store.spec, store.root, encoder)
    assert info.similarity is not None
    alone = info.similarity.model_copy(update={"refined": None})
    predictors = {
        row: predictor_of(plain.network(), plain)
        for row, plain in (
            ("similarity", info.model_copy(update={"similarity": alone})),
            ("no_shots", info.model_copy(update={"similarity": alone.model_copy(update={"shots": None})})),
        )
    }
    network = info.network()
    if info.weights:
        network.load_state_dict(load(shipped_weights()))
    predictor = predictors["shipped"] = predictor_of(network, info)
    predictors |= others or {}
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
    answers = {row: _answers(other, examples) for row, other in predictors.items()}
    shuffled = [
        replace(example, features=examples[other].features, edges=examples[other].edges)
        for example, other in zip(examples, derangement(len(examples)), strict=True)
    ]
    first_spans = [true[0] for true in truths]
    systems = {
        **{row: moment_metrics(spans, truths) for row, spans in answers.items()},
        "constant": constant_metrics(fit_constants(first_spans, durations), truths, durations),
        "middle_third": moment_metrics([[(d / 3, 2 * d / 3)] for d in durations], truths),
        "shuffled": moment_metrics(_answers(predictor, shuffled), truths),
    }
    figures = {f"{row}.{name}": metrics[name] for row, metrics in systems.items() for name in METRICS}
    video_index = [i for i, e in enumerate(examples) for _ in e.queries]
    ious = {row: best_iou(spans, truths, 1)[:, 0] for row, spans in answers.items()}
    for row in ious:
        figures |= bootstrap(row, ious[row], ious["similarity"], np.array(video_index))
    return figures | {"videos": len(examples), "queries": len(truths)}


def _answers(predictor: Predictor, examples: Sequence[Example]) -> list[list[Span]]:
    """The ranked spans of every query of every example."""
    return [[(s, e) for s, e, _ in ranked] for ranked in retrieve(predictor, examples, TOP_K, NMS)]


def bootstrap(row: str, ious: np.ndarray, baseline: np.ndarray, video_index: np.ndarray) -> Figures:
    """95 % intervals of a row's metrics and of their gain over the baseline's.

    Args:
        ious, baseline: [n] of the best answers; `video_index` [n] their videos.
    """
    values = np.stack([[*(x >= t for t in (0.3, 0.5, 0.7)), x] for x in (ious, baseline)])  # [2, metrics, n]
    videos = video_index.max() + 1
    sums = np.stack([[np.bincount(video_index, x, videos) for x in rows] for rows in values])
    counts = np.bincount(video_index, minlength=videos)
    drawn = np.random.default_rng(0).integers(0, videos, (RESAMPLES, videos))
    means = 100 * sums[..., drawn].sum(3) / counts[drawn].sum(1)  # [2, metrics, resamples]
    figures: Figures = {}
    for kind, samples in (("", means[0]), ("gain_", means[0] - means[1])):
        bounds = np.quantile(samples, [0.025, 0.975], axis=1).tolist()
        for end, limits in zip(("low", "high"), bounds, strict=True):
            figures |= {f"{row}.{kind}{name}_{end}": v for name, v in zip(METRICS, limits, strict=True)}
    return figures


def show(figures: Figures) -> None:
    """The table, with the intervals of the search without training below it."""
    measured = {row: name for row, name in ROWS.items() if f"{row}.miou" in figures}
    rows = [[name, *(f"{figures[f'{row}.{m}']:.1f}" for m in METRICS)] for row, name in measured.items()]
    bounds = [f"{figures[f'shipped.{m}_low']:.1f}-{figures[f'shipped.{m}_high']:.1f}" for m in METRICS]
    gains = [
        f"{figures[f'shipped.gain_{m}_low']:+.1f} to {figures[f'shipped.gain_{m}_high']:+.1f}"
        for m in METRICS
    ]
    rows.insert(1, ["  gain over alone", *gains])
    rows.insert(1, ["  95 % interval", *bounds])
    print_table("without training, percent", ("R@1 at IoU", "0.3", "0.5", "0.7", "mIoU"), rows)
    print_line(f"\n{figures['queries']:.0f} queries on {figures['videos']:.0f} videos")
    if "seconds_to_first_answer" in figures:
        print_line(f"seconds to the first right answer: {figures['seconds_to_first_answer']:.0f}")


if __name__ == "__main__":
    run_command(main)
