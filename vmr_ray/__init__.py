"""vmr-ray: search inside video with plain sentences, on Ray.

from vmr_ray import Searcher
Searcher("index").search("a person pours milk")
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Ask", "SearchResult", "Searcher", "VmrError", "__version__"]

if TYPE_CHECKING:
    from vmr_ray.errors import VmrError
    from vmr_ray.search import Ask, Searcher, SearchResult


def __getattr__(name: str) -> Any:
    """The library's names are loaded when they are used: `import vmr_ray` loads neither torch nor Ray."""
    if name == "VmrError":
        from vmr_ray.errors import VmrError

        return VmrError
    if name in __all__:
        from vmr_ray import search

        return getattr(search, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
