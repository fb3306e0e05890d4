"""vmr-ray: search inside video with plain sentences, on Ray.

from vmr_ray import Searcher
Searcher("index").search("a person pours milk")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SearchRequest", "SearchResult", "Searcher", "VmrError", "__version__"]

# Where each public name lives. They are loaded on first use, so `import vmr_ray` loads neither torch nor Ray.
_HOME = {
    "SearchRequest": "vmr_ray.search.result",
    "SearchResult": "vmr_ray.search.result",
    "Searcher": "vmr_ray.search.searcher",
    "VmrError": "vmr_ray.errors",
}

if TYPE_CHECKING:
    from vmr_ray.errors import VmrError
    from vmr_ray.search.result import SearchRequest, SearchResult
    from vmr_ray.search.searcher import Searcher


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
