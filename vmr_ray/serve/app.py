"""The Serve application: where each part of the service runs. The routes are in api.py.

    Api      HTTP in and out; keys, limits, media                     scale with open connections
    Encoder  queries -> token states, in batches                      scale with queries
    Ranker   both stages of search over the index, in batches         scale with queries; the costly one
    Ingest   adds and deletes videos, one after the other             always one

serve run serve_configs/local.yaml        # import_path: vmr_ray.serve.app:build
"""

# No `from __future__ import annotations` here: Serve reads the types themselves, also in a replica.
import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)

from vmr_ray.errors import VmrError
from vmr_ray.search.result import SearchRequest, SearchResult
from vmr_ray.serve.api import UnavailableError, make_api
from vmr_ray.serve.batching import Batcher, in_thread
from vmr_ray.serve.ingest import IngestJob, IngestQueue
from vmr_ray.serve.models import ServeArgs

_DEATHS = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
# The encoder's name and the states of every query; None for what no searcher would take.
Encoded = tuple[str, list[np.ndarray | None]]
_MOST_WAITING = 256  # searches in one Api replica, for the next free place at a ranker
_BUCKETS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]  # milliseconds

# Shares of a core are what keeps a laptop with two of them going; a config file sets others.


@serve.deployment(ray_actor_options={"num_cpus": 0.25}, max_ongoing_requests=128, max_queued_requests=128)
class Encoder:
    """Queries -> the states of their tokens."""

    def __init__(self, settings: ServeArgs):
        import torch

        from vmr_ray.encoders import text_encoder
        from vmr_ray.model.checkpoint import load_info

        torch.set_num_threads(settings.threads)
        self.encoder = text_encoder(load_info(f"{settings.index}/checkpoint").text_encoder, settings.device)
        self.most = settings.search.max_query_chars
        self.encoder(["warm up"])
        self.batched = Batcher(in_thread(self.encoder), 4 * settings.batch_size)

    async def encode(self, queries: list[str]) -> Encoded:
        async def one(query: str) -> np.ndarray | None:
            if not query.strip() or len(query) > self.most:
                return None
            return await self.batched(query.strip())

        return self.encoder.name, list(await asyncio.gather(*map(one, queries)))


@serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=32, max_queued_requests=64)
class Ranker:
    """One replica: the index opened, the network in memory."""

    def __init__(self, settings: ServeArgs):
        import torch
        from ray.serve.metrics import Histogram

        from vmr_ray.search.searcher import Searcher

        torch.set_num_threads(settings.threads)
        self.searcher = Searcher(settings.index, settings.search, settings.device)
        # The first query pays for lazy set-up; let it be ours.
        self.searcher.search("warm up", 1)
        self.stages = Histogram(
            "vmr_search_stage_ms",
            description="Milliseconds of a search, by stage.",
            boundaries=_BUCKETS,
            tag_keys=("stage",),
        )
        # In a thread, so that health checks are answered during a search.
        self.batched = Batcher(in_thread(self._search), settings.batch_size)

    async def search(
        self, asks: list[SearchRequest], encoded: Encoded | None
    ) -> list[SearchResult | VmrError]:
        """`encoded` is the Encoder's answer, None without one."""
        name, tokens = encoded or ("", [])
        # While a new version is rolled out, the encoder may be of the other one.
        if name != self.searcher.predictor.info.text_encoder:
            tokens = [None] * len(asks)
        return list(await asyncio.gather(*map(self.batched, zip(asks, tokens, strict=True))))

    def _search(self, asks: list[tuple[SearchRequest, np.ndarray | None]]) -> list[SearchResult | VmrError]:
        missing = [ask.query.strip() or "-" for ask, tokens in asks if tokens is None]
        own = iter(self.searcher.predictor.text(missing) if missing else [])
        tokens = [next(own) if states is None else states for _, states in asks]
        found = self.searcher.search_many([ask for ask, _ in asks], tokens)
        for result in found:
            if isinstance(result, SearchResult):
                for stage, ms in result.took_ms.items():
                    self.stages.observe(ms, {"stage": stage})
        return found

    def version(self) -> str:
        return self.searcher.version

    def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        return self.searcher.videos(video_ids, offset, limit)

    async def check_health(self) -> None:
        """A wedged network or index fails this, and Serve replaces the replica."""
        await asyncio.wait_for(self.batched((SearchRequest("health", 1), None)), 20)


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_queued_requests=256)
class Ingest:
    """Adds and deletes videos. One replica: an index has one writer."""

    def __init__(self, settings: ServeArgs):
        from vmr_ray.cluster import connect, quiet

        quiet()
        connect()
        self.queue = IngestQueue(settings.index)

    def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob | VmrError:
        try:
            return self.queue.add(video_id, uri, metadata)
        except VmrError as error:
            return error

    def job(self, job_id: str) -> IngestJob | None:
        return self.queue.job(job_id)

    def delete(self, video_id: str) -> VmrError | None:
        try:
            self.queue.delete(video_id)
        except VmrError as error:
            return error
        return None


@serve.deployment(
    ray_actor_options={"num_cpus": 0.1},
    # As many as a laptop answers before they time out: what waits longer was accepted in vain.
    max_ongoing_requests=64,
    max_queued_requests=32,
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
)
@serve.ingress()
class Api:
    """The routes of api.py; as their backend it calls the other deployments and tells Ray's errors."""

    def __init__(
        self,
        settings: ServeArgs,
        encoder: serve.handle.DeploymentHandle | None,
        ranker: serve.handle.DeploymentHandle,
        ingest: serve.handle.DeploymentHandle,
    ):
        self.settings, self.encoder, self.ranker, self.ingest = settings, encoder, ranker, ingest
        # What a call between processes costs is shared, too.
        self.batched = Batcher(self._search, settings.batch_size, settings.batches_in_flight)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self.settings, self)

    async def search(self, ask: SearchRequest) -> SearchResult | VmrError:
        if self.batched.waiting >= _MOST_WAITING:
            raise UnavailableError
        try:
            return await asyncio.wait_for(self.batched(ask), self.settings.timeout_s)
        except TimeoutError:
            raise UnavailableError from None

    async def _search(self, asks: list[SearchRequest]) -> list[SearchResult | VmrError]:
        def call() -> Any:
            encoded = self.encoder.encode.remote([ask.query for ask in asks]) if self.encoder else None
            return self.ranker.search.remote(asks, encoded)

        return cast("list[SearchResult | VmrError]", await self._read(call))

    async def version(self) -> str:
        return await self._read(lambda: self.ranker.version.remote())

    async def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        return await self._read(lambda: self.ranker.videos.remote(video_ids, offset, limit))

    async def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob:
        return await self._write(self.ingest.add, video_id, uri, metadata)

    async def job(self, job_id: str) -> IngestJob | None:
        return await self._read(lambda: self.ingest.job.remote(job_id))

    async def delete(self, video_id: str) -> None:
        await self._write(self.ingest.delete, video_id)

    async def metrics(self) -> str:
        import httpx
        import ray

        nodes = [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in ray.nodes()
            if node["Alive"]
        ]
        async with httpx.AsyncClient(timeout=5) as client:
            pages = await asyncio.gather(*(client.get(node) for node in nodes), return_exceptions=True)
        texts = [page.text for page in pages if not isinstance(page, BaseException)]
        return "".join(
            line + "\n"
            for text in texts
            for line in text.splitlines()
            if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(("ray_vmr_", "ray_serve_"))
        )

    async def _read(self, call: Callable[[], Any]) -> Any:
        """Nothing changes: if the replica dies, another one may answer, and nobody waits for ever."""
        for attempt in (1, 2):
            try:
                answer = call()
                return await asyncio.wait_for(answer, self.settings.timeout_s)
            except TimeoutError:
                answer.cancel()  # its place is for somebody who still waits
                raise UnavailableError from None
            except BackPressureError:
                raise UnavailableError from None
            except _DEATHS:
                if attempt == 2:
                    raise UnavailableError from None
                await asyncio.sleep(0.05)

    async def _write(self, method: Any, *args: Any) -> Any:
        try:
            answer = await asyncio.wait_for(method.remote(*args), self.settings.timeout_s)
        except (TimeoutError, BackPressureError, *_DEATHS):
            raise UnavailableError from None
        if isinstance(answer, VmrError):
            raise answer
        return answer


def build(args: dict[str, Any]) -> serve.Application:
    """What a Serve config's `import_path` names; errors as for `assemble`."""
    return assemble(args)


def assemble(args: dict[str, Any], replicas: int | None = None) -> serve.Application:
    """The application, with so many replicas of every part that may have several.

    Raises:
        VmrError: an argument is unknown or malformed, or keys are asked for and there are none.
    """
    from vmr_ray.config import validated
    from vmr_ray.serve.auth import load_keys

    settings = validated(ServeArgs, args, "args")
    if settings.auth == "keys":
        load_keys(settings.key_file)
    options = {} if replicas is None else {"num_replicas": replicas}
    parts: Any = (Api, Encoder, Ranker)
    api, encoder, ranker = (part.options(**options) for part in parts)
    return api.bind(
        settings,
        encoder.bind(settings) if settings.split_encoder else None,
        ranker.bind(settings),
        Ingest.bind(settings),  # type: ignore[attr-defined]
    )
