"""Annotation files -> `Annotation` records: one reader a dataset format, the same checks for all of them."""

from vmr_ray.annotations.files import (
    FORMATS,
    AnnotationSet,
    AnnotationSource,
    load_annotations,
    read_annotations,
)
from vmr_ray.annotations.rows import RowProblem

__all__ = [
    "FORMATS",
    "AnnotationSet",
    "AnnotationSource",
    "RowProblem",
    "load_annotations",
    "read_annotations",
]
