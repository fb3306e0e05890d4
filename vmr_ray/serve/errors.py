"""Every error as an HTTP answer: a JSON object whose `error` is a sentence for the client."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse, Response

from vmr_ray.errors import VmrError

_MAX_MESSAGE = 1000  # characters


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


async def _http_error(_: Request, error: HTTPException) -> Response:
    return error_response(error.status_code, error.detail, error.headers)


async def _unavailable(_: Request, error: UnavailableError) -> Response:
    return error_response(503, "busy: try again in a second", {"Retry-After": "1"})


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
