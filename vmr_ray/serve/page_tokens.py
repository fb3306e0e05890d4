"""Page tokens: where the next page begins, signed, and bound to the request that the token came with."""

from __future__ import annotations

import base64
import hashlib
import hmac

from vmr_ray.errors import VmrError

_SIGNATURE = 16  # bytes


def encode_token(offset: int, request_hash: str, secret: str) -> str:
    """The token of the page that begins at result number `offset`."""
    signed = f"{offset}.".encode() + _signature(offset, request_hash, secret)
    return base64.urlsafe_b64encode(signed).decode().rstrip("=")


def decode_token(token: str | None, request_hash: str, secret: str) -> int:
    """The offset in the token; 0 without a token.

    Raises:
        VmrError: the token is damaged, was not made by this service, or came with another request.
    """
    if token is None:
        return 0
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:  # not base64
        data = b""
    digits, _, signature = data.partition(b".")
    if 0 < len(digits) < 20 and digits.isdigit():
        offset = int(digits)
        if hmac.compare_digest(signature, _signature(offset, request_hash, secret)):
            return offset
    raise VmrError("page_token does not belong to this request: send the request again without it")


def _signature(offset: int, request_hash: str, secret: str) -> bytes:
    text = f"{offset}.{request_hash}".encode()
    return hmac.digest(secret.encode(), text, hashlib.sha256)[:_SIGNATURE]
