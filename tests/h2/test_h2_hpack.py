"""Our HPACK against the hpack package's, over whole connections of header blocks."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakemesh.server.h2_hpack import (
    HeaderBlockError,
    HeaderDecoder,
    HeaderListTooLarge,
    encode_field,
    encode_status,
)

_NAMES = st.sampled_from([b":path", b"content-type", b"x-a", b"grpc-timeout", b"x" * 200])
_FIELDS = st.lists(st.tuples(_NAMES, st.binary(max_size=300)), max_size=12)


@given(blocks=st.lists(_FIELDS, max_size=12), huffman=st.booleans())
def test_blocks_decode_as_they_were_encoded(
    blocks: list[list[tuple[bytes, bytes]]], huffman: bool
) -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder(1 << 20)
    for fields in blocks:
        decoded, size = decoder.decode(encoder.encode(fields, huffman=huffman))
        assert decoded == fields
        assert size == sum(len(name) + len(value) + 32 for name, value in fields)


@given(block=st.binary(max_size=200))
def test_random_bytes_mean_the_same_or_are_refused(block: bytes) -> None:
    theirs: list[tuple[bytes, bytes]] | None
    try:
        theirs = [(h[0], h[1]) for h in hpack.Decoder(1 << 20).decode(block, raw=True)]
    except Exception:
        theirs = None
    try:
        ours = HeaderDecoder(1 << 20).decode(block)[0]
    except (HeaderBlockError, HeaderListTooLarge):
        return  # we are the stricter of the two with integers beyond any use
    assert ours == theirs


@given(fields=_FIELDS, status=st.integers(100, 599))
def test_answers_are_read_by_others(fields: list[tuple[bytes, bytes]], status: int) -> None:
    block = encode_status(status) + b"".join(encode_field(*field) for field in fields)
    read = [(h[0], h[1]) for h in hpack.Decoder(1 << 20).decode(block, raw=True)]
    assert read == [(b":status", b"%d" % status), *fields]


def test_a_list_beyond_the_limit_is_refused() -> None:
    block = hpack.Encoder().encode([(b"a", b"b" * 100)])
    with pytest.raises(HeaderListTooLarge):
        HeaderDecoder(132).decode(block)
