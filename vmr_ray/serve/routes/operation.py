"""What monitors and load balancers ask for."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from vmr_ray.serve.errors import UnavailableError
from vmr_ray.serve.models import Health
from vmr_ray.serve.routes.common import CurrentBackend

_READY_TIMEOUT = 5  # seconds

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process that answers HTTP is alive."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(backend: CurrentBackend) -> Health:
    """A search would be answered now."""
    try:
        version = await asyncio.wait_for(backend.version(), _READY_TIMEOUT)
    except TimeoutError:
        raise UnavailableError from None
    return Health(status="ok", model_version=version)


@router.get("/metrics", response_class=Response)
async def metrics(backend: CurrentBackend) -> Response:
    """Prometheus metrics of all nodes: the stages of search, and Ray Serve's own."""
    return Response(await backend.metrics(), media_type="text/plain; version=0.0.4")
