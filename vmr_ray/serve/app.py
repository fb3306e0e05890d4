"""The Ray Serve application: its deployments. The HTTP routes are in routes/.

    Api      HTTP, API keys, limits, media                            scales with open connections
    Encoder  queries -> token states, in batches                      scales with queries
    Ranker   both stages of search over the index, in batches         scales with queries; costs most
    Ingest   adds and deletes videos, one after the other             always one replica

serve run serve_configs/local.yaml        # import_path: vmr_ray.serve.app:build
"""

# No `from __future__ import annotations`: Serve reads the types, in replicas too.
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
from vmr_ray.serve.api import make_api
from vmr_ray.serve.batching import Batcher, OverdueError, in_thread
from vmr_ray.serve.errors import UnavailableError
from vmr_ray.serve.ingest import IngestJob, IngestQueue
from vmr_ray.serve.models import ServeArgs
from vmr_ray.storage import join

_REPLICA_DEATHS = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
# The name of the text encoder, and the states of every query's tokens, each [L, token_dim].
EncodedQueries = tuple[str, list[np.ndarray]]
_HUNG_S = 20  # seconds: no call takes as long
_MAX_WAITING = 256  # searches that wait in one Api replica for a call to a ranker
_MAX_LOOKUPS = 8  # calls of one Api replica that ask a ranker for no search: they leave the searches' places
_BUCKETS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]  # milliseconds


def _listen_on_loopback() -> None:
    """Called in a replica before Ray Serve opens its port for calls between deployments.

    Serve opens it on all addresses of the machine. If Ray's node has the address 127.0.0.1, as the one that
    `vmr` starts, other machines need not reach it, and this opens it on that address.
    """
    import ray
    from ray.serve._private import replica

    address = ray.util.get_node_ip_address()
    if address == "127.0.0.1":
        add_port = getattr(replica, "add_port_to_grpc_server", None)
        if add_port is not None:  # a later Ray may do it in another way
            replica.add_port_to_grpc_server = lambda server, _: add_port(server, f"{address}:0")


# Replicas take fractions of a core, so that a laptop with two cores has room for all; config files set more.


@serve.deployment(ray_actor_options={"num_cpus": 0.25}, max_ongoing_requests=128, max_queued_requests=128)
class Encoder:
    """Encodes queries: the states of their tokens."""

    def __init__(self, settings: ServeArgs):
        import torch

        from vmr_ray.encoders import text_encoder
        from vmr_ray.model.checkpoint import load_info

        _listen_on_loopback()
        torch.set_num_threads(settings.threads)
        self.encoder = text_encoder(
            load_info(join(settings.index, "checkpoint")).text_encoder, settings.device
        )
        self.max_chars = settings.search.max_query_chars
        self.encoder(["warm up"])
        self.batched = Batcher(in_thread(self.encoder), 4 * settings.batch_size)

    async def encode(self, queries: list[str]) -> EncodedQueries:
        """The states of every query. Of one that is too long, which the ranker refuses, only the part within
        the limit is encoded."""
        texts = [query.strip()[: self.max_chars] for query in queries]
        return self.encoder.name, list(await asyncio.gather(*map(self.batched, texts)))


@serve.deployment(ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=32, max_queued_requests=64)
class Ranker:
    """Searches the index; each replica has the network in memory."""

    def __init__(self, settings: ServeArgs):
        import torch
        from ray.serve.metrics import Histogram

        from vmr_ray.search.searcher import Searcher

        _listen_on_loopback()
        torch.set_num_threads(settings.threads)
        self.searcher = Searcher(settings.index, settings.search, settings.device)
        # The first query is slow, because much is set up lazily.
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
        self, requests: list[SearchRequest], encoded: EncodedQueries | None
    ) -> list[SearchResult | VmrError]:
        """The result of each request, or what is wrong with it. `encoded` is the Encoder's answer, None if
        there is no Encoder."""
        name, states = encoded or ("", [])
        # While a new checkpoint is rolled out, the Encoder may still have the old one's text encoder.
        usable = name == self.searcher.predictor.info.text_encoder
        items = zip(requests, states if usable else [None] * len(requests), strict=True)
        return list(await asyncio.gather(*map(self.batched, items)))

    def _search(self, batch: list[tuple[SearchRequest, np.ndarray | None]]) -> list[SearchResult | VmrError]:
        states = [tokens for _, tokens in batch if tokens is not None]
        answers = self.searcher.search_many(
            # The searcher encodes all queries if some were not; that happens in health checks and roll-outs.
            [request for request, _ in batch],
            states if len(states) == len(batch) else None,
        )
        for answer in answers:
            if isinstance(answer, SearchResult):
                for stage, ms in answer.took_ms.items():
                    self.stages.observe(ms, {"stage": stage})
        return answers

    def version(self) -> str:
        """The checksum of the checkpoint that ranks."""
        return self.searcher.version

    def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """As `Searcher.videos`."""
        return self.searcher.videos(video_ids, offset, limit)

    async def check_health(self) -> None:
        """Fails if the network or the index hangs; Serve then replaces the replica.

        Under load the running searches show it. A search of its own would wait behind them.
        """
        if not self.batched.longest_call_s:
            await asyncio.wait_for(self.batched((SearchRequest("health", 1), None)), _HUNG_S)
        elif self.batched.longest_call_s > _HUNG_S:
            raise RuntimeError(f"a call has run for {self.batched.longest_call_s:.0f} s")


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_queued_requests=256)
class Ingest:
    """Adds and deletes videos. There is one replica, because an index has one writer.

    A VmrError is returned, not raised, because Ray would append the traceback to it.
    """

    def __init__(self, settings: ServeArgs):
        from vmr_ray.cluster import connect, quiet

        _listen_on_loopback()
        quiet()
        connect()
        self.queue = IngestQueue(settings.index)

    def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob | VmrError:
        """As `IngestQueue.add`."""
        try:
            return self.queue.add(video_id, uri, metadata)
        except VmrError as error:
            return error

    def job(self, job_id: str) -> IngestJob | None:
        """As `IngestQueue.job`."""
        return self.queue.job(job_id)

    def delete(self, video_id: str) -> VmrError | None:
        """As `IngestQueue.delete`."""
        try:
            self.queue.delete(video_id)
        except VmrError as error:
            return error
        return None


@serve.deployment(
    ray_actor_options={"num_cpus": 0.1},
    # Each kind of request has places of its own (admission.py); these are enough for all of them.
    max_ongoing_requests=512,
    max_queued_requests=64,
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
)
@serve.ingress()
class Api:
    """Answers HTTP. It is the `Backend` of the routes: its methods call the other deployments, and turn
    Ray's errors into UnavailableError."""

    def __init__(
        self,
        settings: ServeArgs,
        encoder: serve.handle.DeploymentHandle | None,
        ranker: serve.handle.DeploymentHandle,
        ingest: serve.handle.DeploymentHandle,
    ):
        _listen_on_loopback()
        self.settings, self.encoder, self.ranker, self.ingest = settings, encoder, ranker, ingest
        # The searches of a batch also share the cost of the calls between processes.
        self.batched = Batcher(
            self._search, settings.batch_size, settings.batches_in_flight, max_wait_s=settings.wait_s
        )
        self._lookups = asyncio.Semaphore(_MAX_LOOKUPS)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self.settings, self)

    async def search(self, request: SearchRequest) -> SearchResult | VmrError:
        """As `Backend.search`."""
        if self.batched.waiting >= _MAX_WAITING:
            raise UnavailableError
        try:
            return await asyncio.wait_for(self.batched(request), self.settings.timeout_s)
        except (TimeoutError, OverdueError):
            raise UnavailableError from None

    async def _search(self, requests: list[SearchRequest]) -> list[SearchResult | VmrError]:
        def call() -> Any:
            queries = [request.query for request in requests]
            encoded = self.encoder.encode.remote(queries) if self.encoder else None
            return self.ranker.search.remote(requests, encoded)

        return cast("list[SearchResult | VmrError]", await self._read(call))

    async def version(self) -> str:
        """As `Backend.version`."""
        async with self._lookups:
            return cast("str", await self._read(lambda: self.ranker.version.remote()))

    async def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """As `Backend.videos`."""
        async with self._lookups:
            rows = await self._read(lambda: self.ranker.videos.remote(video_ids, offset, limit))
        return cast("list[dict[str, Any]]", rows)

    async def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob:
        """As `Backend.add`."""
        return await self._write(self.ingest.add, video_id, uri, metadata)

    async def job(self, job_id: str) -> IngestJob | None:
        """As `Backend.job`."""
        return await self._read(lambda: self.ingest.job.remote(job_id))

    async def delete(self, video_id: str) -> None:
        """As `Backend.delete`."""
        await self._write(self.ingest.delete, video_id)

    async def metrics(self) -> str:
        """As `Backend.metrics`."""
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
        """The answer to a call that changes nothing, which is therefore repeated once if the replica dies."""
        for attempt in (1, 2):
            try:
                answer = call()
                return await asyncio.wait_for(answer, self.settings.timeout_s)
            except TimeoutError:
                answer.cancel()  # nobody waits for it any more
                raise UnavailableError from None
            except BackPressureError:
                raise UnavailableError from None
            except _REPLICA_DEATHS:
                if attempt == 2:
                    raise UnavailableError from None
                await asyncio.sleep(0.05)

    async def _write(self, method: Any, *args: Any) -> Any:
        """The answer to a call that changes the index, which is never repeated."""
        try:
            answer = await asyncio.wait_for(method.remote(*args), self.settings.timeout_s)
        except (TimeoutError, BackPressureError, *_REPLICA_DEATHS):
            raise UnavailableError from None
        if isinstance(answer, VmrError):
            raise answer
        return answer


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file, whose `import_path` names this function. Raises as
    `assemble`."""
    return assemble(args)


def assemble(args: dict[str, Any], replicas: int | None = None) -> serve.Application:
    """The application.

    Args:
        args: fields of `ServeArgs`.
        replicas: of each deployment but `Ingest`; None: as the deployments or the config file say.

    Raises:
        VmrError: an argument is unknown or malformed, or it asks for API keys and there are none.
    """
    from vmr_ray.config import validated
    from vmr_ray.serve.auth import load_keys

    settings = validated(ServeArgs, args, "args")
    if settings.auth == "keys":
        load_keys(settings.key_file)
    settings = settings.with_secret()  # here, so that all replicas have the same
    options = {} if replicas is None else {"num_replicas": replicas}
    scaled: Any = (Api, Encoder, Ranker)
    api, encoder, ranker = (deployment.options(**options) for deployment in scaled)
    return api.bind(
        settings,
        encoder.bind(settings) if settings.split_encoder else None,
        ranker.bind(settings),
        Ingest.bind(settings),  # type: ignore[attr-defined]
    )
