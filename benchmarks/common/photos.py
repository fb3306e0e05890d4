"""The row of a network that was trained on captioned photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.output import Figures
from vmr_ray.annotations import AnnotationSet
from vmr_ray.config import Config, DecodeConfig, EmbedConfig, TrainConfig
from vmr_ray.evaluation.evaluate import evaluate
from vmr_ray.features import FeatureStore
from vmr_ray.workflows.photos import train_on_photos


def photos_row(
    photos: Path, run: Path, epochs: int, store: FeatureStore, asked: AnnotationSet, metrics: Sequence[str]
) -> Figures:
    """Train on photos for some epochs; the last checkpoint, not the best one, answers `asked`."""
    spec = store.spec
    config = Config(
        embed=EmbedConfig(encoder=spec.encoder, fit=spec.fit, decode=DecodeConfig(sampling=spec.sampling)),
        # Few photos are held out, because the last checkpoint is taken whatever they say.
        train=TrainConfig(epochs=epochs, val_fraction=0.02, evaluate_every=epochs),
    )
    trained = train_on_photos(photos, run, config).train
    answered = evaluate(store.root, asked, trained.last).model
    return {f"photos.{name}": answered[name] for name in metrics}
