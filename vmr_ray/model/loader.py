"""The predictor of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from vmr_ray.model.checkpoint import CheckpointInfo, load_network
from vmr_ray.model.cross_interaction import CrossInteraction
from vmr_ray.model.network_predictor import NetworkPredictor
from vmr_ray.model.predictor import Predictor
from vmr_ray.model.similarity import SimilarityPredictor
from vmr_ray.model.similarity_network import SimilarityNetwork


def load_predictor(checkpoint: str | Path, device: str = "cpu") -> Predictor:
    """The predictor of a checkpoint: a trained network, or a dual encoder's similarity.

    Raises:
        VmrError: the checkpoint is missing, damaged or of another version.
    """
    predictor = predictor_of(*load_network(checkpoint), device)
    _ = predictor.text  # loaded now, so that the first query of a service takes no longer than the others
    return predictor


def predictor_of(
    network: CrossInteraction | SimilarityNetwork, info: CheckpointInfo, device: str = "cpu"
) -> Predictor:
    """The predictor with the network of a checkpoint and its info."""
    if isinstance(network, SimilarityNetwork):
        return SimilarityPredictor(network, info, device)
    return NetworkPredictor(network, info, device)
