"""Search: one query, or several at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote

from fastapi import APIRouter

from vmr_ray.errors import VmrError
from vmr_ray.schema import Moment
from vmr_ray.search.result import SearchRequest
from vmr_ray.serve.backend import Backend
from vmr_ray.serve.models import (
    BatchRequest,
    BatchResponse,
    FoundMoment,
    Refusal,
    SaliencyCurve,
    SearchBody,
    SearchResponse,
    ServeArgs,
)
from vmr_ray.serve.page_tokens import decode_token, encode_token
from vmr_ray.serve.routes.common import CurrentBackend, CurrentSearches, CurrentSettings
from vmr_ray.storage import short_hash

_MAX_OFFSET = 1000  # results: pages end here

router = APIRouter(tags=["search"])


@router.post("/v1/search")
async def search(
    body: SearchBody, backend: CurrentBackend, settings: CurrentSettings, searches: CurrentSearches
) -> SearchResponse:
    """The moments that show what the query says, best first."""
    with searches.take() as answered:
        response = await _search(body, backend, settings)
        answered()
    return response


@router.post("/v1/search:batch")
async def search_batch(
    body: BatchRequest, backend: CurrentBackend, settings: CurrentSettings, searches: CurrentSearches
) -> BatchResponse:
    """Several searches, which count as as many. An error in one of them is the answer to that one only; if
    the service is busy, the whole batch is refused."""
    with searches.take(len(body.searches)) as answered:
        tasks = [
            asyncio.create_task(_search_or_refusal(search, backend, settings)) for search in body.searches
        ]
        try:
            response = BatchResponse(responses=list(await asyncio.gather(*tasks)))
        finally:
            # If one search is refused, or the client disconnects, nobody reads the others.
            for task in tasks:
                task.cancel()
        answered()
    return response


async def _search_or_refusal(
    body: SearchBody, backend: Backend, settings: ServeArgs
) -> SearchResponse | Refusal:
    try:
        return await _search(body, backend, settings)
    except VmrError as error:
        return Refusal(error=str(error))


async def _search(body: SearchBody, backend: Backend, settings: ServeArgs) -> SearchResponse:
    request = SearchRequest(
        query=body.query,
        top_k=body.top_k,
        video_ids=body.video_ids,
        filter=body.filter,
        min_score=body.min_score,
        min_probability=body.min_probability,
        group_by=body.group_by,
        saliency="saliency" in body.include,
    )
    request.check(settings.search)  # before any work is done for it
    request_hash = _request_hash(body)
    secret = settings.token_secret or ""
    offset = decode_token(body.page_token, request_hash, secret)
    result = await backend.search(replace(request, offset=offset))
    if isinstance(result, VmrError):
        raise result
    next_offset = offset + body.top_k
    has_next = result.more and next_offset <= _MAX_OFFSET
    return SearchResponse(
        results=_moments(result.moments, offset, "thumbnail" in body.include),
        found=result.found,
        nearest=_moments(result.nearest, offset, "thumbnail" in body.include),
        probability=result.probability,
        next_page_token=encode_token(next_offset, request_hash, secret) if has_next else None,
        saliency={
            video_id: SaliencyCurve(times=curve.times, values=curve.values)
            for video_id, curve in result.saliency.items()
        }
        if "saliency" in body.include
        else None,
        model_version=result.model_version,
        took_ms=result.took_ms,
    )


def _moments(moments: Sequence[Moment], offset: int, with_thumbnail: bool) -> list[FoundMoment]:
    return [
        FoundMoment(
            rank=rank,
            video_id=moment.video_id,
            start=moment.start,
            end=moment.end,
            score=moment.score,
            probability=moment.probability,
            thumbnail=_thumbnail_address(moment.video_id, (moment.start + moment.end) / 2)
            if with_thumbnail
            else None,
        )
        for rank, moment in enumerate(moments, start=offset + 1)
    ]


def _thumbnail_address(video_id: str, second: float) -> str:
    return f"v1/videos/{quote(video_id)}/thumbnail?t={second:.1f}"


def _request_hash(body: SearchBody) -> str:
    """The hash of what decides the results and their order."""
    return short_hash(json.dumps(body.model_dump(exclude={"page_token", "include"}), sort_keys=True), 16)
