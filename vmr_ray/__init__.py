"""vmr-ray: search inside video with plain sentences, on Ray.

from vmr_ray import Searcher
Searcher("index").search("a person pours milk")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The module of each public name, imported on first use: `import vmr_ray` loads neither torch nor Ray.
_MODULES = {
    "SearchRequest": "vmr_ray.search.result",
    "SearchResult": "vmr_ray.search.result",
    "Searcher": "vmr_ray.search.searcher",
    "VmrError": "vmr_ray.errors",
    "build_index": "vmr_ray.search.build",
    "embed": "vmr_ray.embedding.embed",
    "evaluate": "vmr_ray.evaluation.evaluate",
    "reproduce": "vmr_ray.workflows.reproduce",
    "run_pipeline": "vmr_ray.workflows.pipeline",
    "train": "vmr_ray.training.train",
    "train_on_photos": "vmr_ray.workflows.photos",
    "train_unlabelled": "vmr_ray.training.unlabelled",
    "up": "vmr_ray.workflows.up",
}
__all__ = [
    "SearchRequest",
    "SearchResult",
    "Searcher",
    "VmrError",
    "__version__",
    "build_index",
    "embed",
    "evaluate",
    "reproduce",
    "run_pipeline",
    "train",
    "train_on_photos",
    "train_unlabelled",
    "up",
]

if TYPE_CHECKING:
    from vmr_ray.embedding.embed import embed
    from vmr_ray.errors import VmrError
    from vmr_ray.evaluation.evaluate import evaluate
    from vmr_ray.search.build import build_index
    from vmr_ray.search.result import SearchRequest, SearchResult
    from vmr_ray.search.searcher import Searcher
    from vmr_ray.training.train import train
    from vmr_ray.training.unlabelled import train_unlabelled
    from vmr_ray.workflows.photos import train_on_photos
    from vmr_ray.workflows.pipeline import run_pipeline
    from vmr_ray.workflows.reproduce import reproduce
    from vmr_ray.workflows.up import up


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
