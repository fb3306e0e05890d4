from __future__ import annotations

import base64

import pytest

from vmr_ray.errors import VmrError
from vmr_ray.serve.page_tokens import decode_token, encode_token


def test_a_token_holds_its_offset():
    assert decode_token(None, "hash", "secret") == 0
    for offset in (0, 7, 123_456_789):
        token = encode_token(offset, "hash", "secret")
        assert decode_token(token, "hash", "secret") == offset
        assert token.isascii() and "=" not in token


def with_offset(token: str, offset: str) -> str:
    """The token with another offset and its old signature."""
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return base64.urlsafe_b64encode(offset.encode() + data[data.index(b".") :]).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        encode_token(3, "other", "secret"),
        encode_token(3, "hash", "guess"),
        encode_token(3, "hash", ""),
        *(with_offset(encode_token(3, "hash", "secret"), offset) for offset in ("4", "-3", "²", "")),
        base64.urlsafe_b64encode(b"\xff.hash").decode(),
        base64.urlsafe_b64encode(b"3.hash").decode(),
        *("", "x", "é", "3.hash", "=" * 200),
    ],
)
def test_other_tokens_are_refused(token: str):
    with pytest.raises(VmrError, match="page_token"):
        decode_token(token, "hash", "secret")
