"""API keys: who may use the service. Only their hashes are stored, so a stolen key file opens nothing.

A key file has one line for each key: `name sha256-of-the-key`. `vmr keys new NAME --file FILE` adds one.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from vmr_ray.errors import VmrError, one_line
from vmr_ray.serve.errors import error_response

ENVIRONMENT = "VMR_API_KEYS"
# Load balancers, monitors and browsers reach these without a key; none of them shows a video.
_OPEN = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
_OPEN_FILES = "/page/"  # the page's own scripts and styles


def new_key(name: str, file: str | Path) -> str:
    """Make a key, add its hash to `file` under `name` and return the key, which is stored nowhere.

    Raises:
        VmrError: the name is not one word, or is in the file already; the file cannot be read.
    """
    if not re.fullmatch(r"[^\s#]+", name):
        raise VmrError(f"{name!r} cannot be the name of a key: give one word")
    path = Path(file).expanduser()
    if path.exists() and name in _read(path):
        raise VmrError(f"{path} has a key named {name!r} already: delete its line to replace it")
    key = "vmr_" + secrets.token_urlsafe(32)
    text = path.read_text() if path.exists() else ""
    end_of_line = "\n" if text and not text.endswith("\n") else ""
    # Appended, so that a process that is killed here loses no key.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(f"{end_of_line}{name} {digest(key)}\n")
    return key


def load_keys(file: str | Path | None) -> dict[str, str]:
    """The keys of the file and of VMR_API_KEYS (plain keys, separated by commas): name -> hash.

    Raises:
        VmrError: there is no key at all, or the file is missing, unreadable or malformed.
    """
    keys = _read(Path(file).expanduser()) if file else {}
    for i, key in enumerate(filter(None, map(str.strip, os.environ.get(ENVIRONMENT, "").split(",")))):
        keys[f"{ENVIRONMENT}[{i}]"] = digest(key)
    if not keys:
        raise VmrError(
            f"there is no API key: make one with `vmr keys new NAME --file FILE`, set {ENVIRONMENT}, "
            "or set auth: none, which answers only this machine"
        )
    return keys


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VmrError(f"cannot read the key file {path} ({one_line(error)}): give a text file") from None
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
    """The hash of a key. Keys are long and random, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


class Gate:
    """ASGI middleware: answers 401 without a valid key. If `keys` is None, no key is needed, and 403 is the
    answer to clients on other machines and to what pages of other sites make a browser send.

    Clients send a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`. A media element of a page can send
    neither, so GET requests may have it in the cookie `vmr_key`.

    Args:
        hosts: names under which the service is reached without keys, besides those of this machine.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, str] | None, hosts: Collection[str] = ()):
        self.app, self.keys, self.hosts = app, keys, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self.refusal(Request(scope))):
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that is not let through; None for the others."""
        if self.keys is None:
            reason = self._foreign(request)
            return error_response(403, reason) if reason else None
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        if is_open(path) or self.allows(_key(request)):
            return None
        return error_response(
            401,
            "a valid API key is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            {"WWW-Authenticate": "Bearer"},
        )

    def _foreign(self, request: Request) -> str:
        """Why a request without a key may not be the user's own; empty if it may.

        A browser on this machine connects from loopback whichever page makes it do so. A page of another
        site shows in Origin and Sec-Fetch-Site; one whose name was rebound to this machine shows in Host.
        """
        if not is_loopback(request.client.host if request.client else ""):
            return (
                "API keys are off, so only clients on the service's own machine are answered: set auth: keys"
            )
        host = request.headers.get("host", "")
        name = (_host_name(f"//{host}") or "").rstrip(".")
        if not is_loopback(name) and name not in self.hosts:
            return (
                f"API keys are off, and {host[:100]!r} is not a name of this machine: use 127.0.0.1 or "
                "localhost, add the name to `hosts`, or set auth: keys"
            )
        origin = request.headers.get("origin")
        is_own = origin is None or origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
        if not is_own or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "API keys are off, so requests from pages of other sites are refused: set auth: keys"
        return ""

    def allows(self, key: str) -> bool:
        """Whether the key is valid. All keys are compared, each in constant time."""
        sent = digest(key)
        return sum(hmac.compare_digest(sent, known) for known in (self.keys or {}).values()) > 0


def is_open(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in _OPEN or path.startswith(_OPEN_FILES)


def _key(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    if key := request.headers.get("x-api-key"):
        return key
    return request.cookies.get("vmr_key", "") if request.method in ("GET", "HEAD") else ""


def _host_name(address: str) -> str | None:
    """The name in `//name:port`, in lower case; None if there is none, or more than a name and a port."""
    if re.search(r"[@/?#\\]", address.removeprefix("//")):
        return None
    try:
        return urlsplit(address).hostname
    except ValueError:  # brackets without an IPv6 address
        return None


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
