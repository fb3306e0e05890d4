"""The feature store: reading and writing it, checking it, packing it, and finding videos in it by name."""

from vmr_ray.features.check import Problem, Verification, verify
from vmr_ray.features.chunks import DamagedError
from vmr_ray.features.compact import Compaction, compact
from vmr_ray.features.names import by_video, resolve_ids
from vmr_ray.features.store import FeatureStore, StoreSpec, VideoFeatures

__all__ = [
    "Compaction",
    "DamagedError",
    "FeatureStore",
    "Problem",
    "StoreSpec",
    "Verification",
    "VideoFeatures",
    "by_video",
    "compact",
    "resolve_ids",
    "verify",
]
