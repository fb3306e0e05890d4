"""The predictor of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from vmr_ray.model.checkpoint import load_info, load_network
from vmr_ray.model.network_predictor import NetworkPredictor
from vmr_ray.model.predictor import Predictor
from vmr_ray.model.similarity import SimilarityPredictor


def load_predictor(checkpoint: str | Path, device: str = "cpu") -> Predictor:
    """The network of a checkpoint, or the dual encoder that a checkpoint without weights names.

    Raises:
        VmrError: the checkpoint is missing, damaged or of another version.
    """
    info = load_info(checkpoint)
    predictor: Predictor = (
        SimilarityPredictor(info, device)
        if info.similarity
        else NetworkPredictor(*load_network(checkpoint), device=device)
    )
    _ = predictor.text  # loaded now, so that the first query of a service takes no longer than the others
    return predictor
