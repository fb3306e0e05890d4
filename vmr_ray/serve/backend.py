"""What the routes need of the deployments behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vmr_ray.errors import VmrError
from vmr_ray.search.result import SearchRequest, SearchResult
from vmr_ray.serve.ingest import IngestJob


class Backend(Protocol):
    """Search and the index's videos. Every call raises UnavailableError if it may be repeated later."""

    async def search(self, request: SearchRequest) -> SearchResult | VmrError:
        """The moments, or what is wrong with the request."""

    async def version(self) -> str:
        """The checksum of the checkpoint that ranks."""

    async def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """The rows of the indexed videos, as `Searcher.videos` returns them."""

    async def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob:
        """Queue a video. Raises VmrError if the index has it, or a job for it is queued."""

    async def job(self, job_id: str) -> IngestJob | None:
        """The job, None if there is none of this id."""

    async def delete(self, video_id: str) -> None:
        """Delete a video from the index. Raises VmrError if it is not indexed."""

    async def metrics(self) -> str:
        """Prometheus metrics of all nodes, in its text format."""
