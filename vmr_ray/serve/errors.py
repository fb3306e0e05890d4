"""Every error as an HTTP answer: a JSON object whose `error` is a sentence for the client."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from vmr_ray.errors import VmrError

_MAX_MESSAGE = 1000  # characters
_UNPARSED = "There was an error parsing the body"  # FastAPI's, if JSON's parser itself gives up
BUSY = "busy: try again in a second"
RETRY = {"Retry-After": "1"}


class UnavailableError(Exception):
    """The service is overloaded, or a replica died: the same request may succeed a second later."""


class StorageError(VmrError):
    """What the client sent cannot be stored."""


def storage_error(error: OSError) -> StorageError:
    """The sentence for a failed write, without the path."""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return StorageError(f"the service cannot store this ({reason}): free space on its disk, then try again")


class StalledError(Exception):
    """The client stopped sending in the middle of a body."""


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that failed."""
    return JSONResponse({"error": message}, status_code=status, headers=headers)


def validation_message(errors: Sequence[Any], skip: int = 0) -> str:
    """What is wrong with each field, without repeating the client's values.

    Args:
        errors: pydantic's.
        skip: how many parts of each field's location to leave out.
    """
    return "; ".join(
        f"{'.'.join(map(str, error['loc'][skip:]))[:100] or 'body'}: {error['msg']}" for error in errors
    )[:_MAX_MESSAGE]


async def _invalid_request(_: Request, error: RequestValidationError) -> Response:
    # The first part of a location is "body", "query" or "path".
    return error_response(422, validation_message(error.errors(), skip=1))


async def _user_error(_: Request, error: VmrError) -> Response:
    return error_response(400, str(error))


async def _storage_error(_: Request, error: StorageError) -> Response:
    return error_response(507, str(error))


async def _http_error(request: Request, error: HTTPException) -> Response:
    message = error.detail
    if message == HTTPStatus(error.status_code).phrase:  # Starlette's own, which names no fix
        path = request.url.path[:200]
        allowed = (error.headers or {}).get("Allow", "other methods")
        if error.status_code == HTTPStatus.NOT_FOUND:
            message = f"there is no route {path}: /docs lists them"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"{path} does not take {request.method}, but {allowed}: /docs lists the routes"
    elif message == _UNPARSED:
        message = "the body cannot be read: send JSON that is UTF-8 and less deeply nested"
    return error_response(error.status_code, message, error.headers)


async def _unavailable(_: Request, error: UnavailableError) -> Response:
    return error_response(503, BUSY, RETRY)


async def _stalled(_: Request, error: StalledError) -> Response:
    return error_response(408, str(error))


async def _internal_error(_: Request, error: Exception) -> Response:
    return error_response(500, "internal error: see the service's log")


ERROR_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    RequestValidationError: _invalid_request,
    VmrError: _user_error,
    StorageError: _storage_error,
    HTTPException: _http_error,
    UnavailableError: _unavailable,
    StalledError: _stalled,
    Exception: _internal_error,
}
