"""The feature store: reading and writing it, verifying it, and packing it."""

from vmr_ray.features.chunks import DamagedError
from vmr_ray.features.packs import Compaction, compact
from vmr_ray.features.store import FeatureStore
from vmr_ray.features.verification import StoreProblem, Verification, verify

__all__ = [
    "Compaction",
    "DamagedError",
    "FeatureStore",
    "StoreProblem",
    "Verification",
    "compact",
    "verify",
]
