"""Page tokens: where the next page begins, bound to the request that the token came with."""

from __future__ import annotations

import base64

from vmr_ray.errors import VmrError


def encode_token(offset: int, request_hash: str) -> str:
    """The token of the page that begins at result number `offset`."""
    return base64.urlsafe_b64encode(f"{offset}.{request_hash}".encode()).decode().rstrip("=")


def decode_token(token: str | None, request_hash: str, max_offset: int | None = None) -> int:
    """The offset in the token; 0 without a token.

    Raises:
        VmrError: the token is damaged, came with another request, or its offset is above `max_offset`.
    """
    if token is None:
        return 0
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except ValueError:  # not base64, or not UTF-8
        text = ""
    digits, _, token_hash = text.partition(".")
    if token_hash == request_hash and digits.isascii() and digits.isdigit():
        offset = int(digits)
        if max_offset is None or offset <= max_offset:
            return offset
    raise VmrError("page_token does not belong to this request: send the request again without it")
