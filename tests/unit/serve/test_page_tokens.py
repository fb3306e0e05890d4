from __future__ import annotations

import base64

import pytest

from vmr_ray.errors import VmrError
from vmr_ray.serve.page_tokens import decode_token, encode_token


def test_a_token_holds_its_offset():
    assert decode_token(None, "hash") == 0
    for offset in (0, 7, 123_456_789):
        token = encode_token(offset, "hash")
        assert decode_token(token, "hash") == offset
        assert token.isascii() and "=" not in token


@pytest.mark.parametrize(
    "token",
    [
        encode_token(3, "other"),
        encode_token(-3, "hash"),
        encode_token(1001, "hash"),
        base64.urlsafe_b64encode(b"\xff.hash").decode(),
        base64.urlsafe_b64encode("²".encode() + b".hash").decode(),
        *("", "x", "é", "3.hash", "=" * 200),
    ],
)
def test_other_tokens_are_refused(token: str):
    with pytest.raises(VmrError, match="page_token"):
        decode_token(token, "hash", max_offset=1000)
