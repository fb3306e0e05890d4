"""API keys: who may ask. Keys are stored as hashes; a stolen file opens nothing.

A key file holds one line a key: `name sha256-of-the-key`. `vmr keys new NAME --file FILE` adds one.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vmr_ray.errors import VmrError

ENVIRONMENT = "VMR_API_KEYS"
# What a load balancer, a monitor and a browser's first look must reach; none of it shows a video.
OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
OPEN_FILES = "/page/"  # the page's own scripts and styles


def new_key(name: str, file: str | Path) -> str:
    """Make a key, add its hash to `file` under `name` and return the key: nobody can read it again.

    Raises:
        VmrError: the name has blanks, or is in the file already.
    """
    if not re.fullmatch(r"[^\s#]+", name):
        raise VmrError(f"{name!r} is no name for a key: give one word")
    path = Path(file).expanduser()
    if path.exists() and name in _read(path):
        raise VmrError(f"{path} has a key named {name!r} already: delete its line to replace it")
    key = "vmr_" + secrets.token_urlsafe(32)
    lines = path.read_text() if path.exists() else ""
    if lines and not lines.endswith("\n"):
        lines += "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(f"{lines}{name} {digest(key)}\n")
    return key


def load_keys(file: str | Path | None) -> dict[str, str]:
    """Name -> hash of every key of the file and of VMR_API_KEYS (plain keys, separated by commas).

    Raises:
        VmrError: there is no key at all, or the file is unreadable or malformed.
    """
    keys = _read(Path(file).expanduser()) if file else {}
    for i, key in enumerate(filter(None, map(str.strip, os.environ.get(ENVIRONMENT, "").split(",")))):
        keys[f"{ENVIRONMENT}[{i}]"] = digest(key)
    if not keys:
        raise VmrError(
            f"there is no API key: make one with `vmr keys new NAME --file FILE`, set {ENVIRONMENT}, "
            "or set auth: none, which answers this machine only"
        )
    return keys


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VmrError(f"cannot read the key file {path} ({error}): give a text file") from None
    keys = {}
    for number, line in enumerate(lines, start=1):
        if not (text := line.partition("#")[0].strip()):
            continue
        if not (match := re.fullmatch(r"(\S+)\s+([0-9a-f]{64})", text)):
            raise VmrError(
                f"{path}, line {number}: expected a name and a SHA-256 hash; "
                "add keys with `vmr keys new NAME --file FILE`"
            )
        keys[match[1]] = match[2]
    return keys


def digest(key: str) -> str:
    """Keys are long and random, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


class Gate:
    """ASGI middleware: 401 without a valid key; with `keys` None, 403 for other machines.

    A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. A media element in a page can send
    neither, so for GET requests a cookie `vmr_key` counts too.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, str] | None):
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self.refusal(Request(scope))):
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def refusal(self, request: Request) -> JSONResponse | None:
        if self.keys is None:
            if is_loopback(request.client.host if request.client else ""):
                return None
            told = "API keys are off, so only the service's own machine may ask: set auth: keys"
            return JSONResponse({"error": told}, status_code=403)
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        if path in OPEN or path.startswith(OPEN_FILES) or self.allows(_key(request)):
            return None
        return JSONResponse(
            {"error": "a valid API key is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`"},
            status_code=401,
            headers={"WWW-Authenticate": "Bearer"},
        )

    def allows(self, key: str) -> bool:
        """Every key is compared, each in constant time."""
        given = digest(key)
        return sum(hmac.compare_digest(given, known) for known in (self.keys or {}).values()) > 0


def _key(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    if key := request.headers.get("x-api-key"):
        return key
    return request.cookies.get("vmr_key", "") if request.method in ("GET", "HEAD") else ""


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
