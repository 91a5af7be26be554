"""HPACK (RFC 7541) as the HTTP/2 edge needs it: a lean decoder and a stateless encoder.

Answers are encoded without a dynamic table, so a header block that does not change is a constant.
Requests are decoded with one, and `HeaderDecoder.generation` tells when a decoded block may be
remembered: as long as the table did not change, the same bytes mean the same fields.
"""

from __future__ import annotations

from collections import deque

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]

_STATIC: tuple[Field, ...] = HeaderTable.STATIC_TABLE
_STATIC_LENGTH = len(_STATIC)
_NAME_INDEX: dict[bytes, int] = {}
for _index, (_name, _value) in enumerate(_STATIC, 1):
    _NAME_INDEX.setdefault(_name, _index)
_STATUS_INDEX: dict[bytes, int] = {
    value: index for index, (name, value) in enumerate(_STATIC, 1) if name == b":status"
}
_NEVER_INDEXED = frozenset({b"set-cookie", b"authorization", b"proxy-authorization"})
_TABLE_BYTES = 4096
_ENTRY_OVERHEAD = 32

NO_DYNAMIC_TABLE = b"\x20"
"""Dynamic table size update to 0: goes in front of the first header block of a connection."""


class HeaderBlockError(Exception):
    """The block is not HPACK; the connection cannot go on (COMPRESSION_ERROR)."""


class HeaderListTooLarge(Exception):
    """The block expands beyond the hard limit; the connection cannot go on."""


class HeaderDecoder:
    """Decodes the header blocks of one connection, in order."""

    __slots__ = ("_dynamic", "_max_bytes", "_size", "_table_bytes", "generation")

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` bounds one decoded list, counted with 32 bytes a field on top."""
        self._dynamic: deque[Field] = deque()
        self._size = 0
        self._table_bytes = _TABLE_BYTES
        self._max_bytes = max_bytes
        self.generation = 0
        """Changes whenever the dynamic table does."""

    def decode(self, block: bytes) -> tuple[list[Field], int]:
        """The fields of a complete header block and the size of the list.

        Raises HeaderBlockError or HeaderListTooLarge; the decoder is of no use afterwards.
        """
        try:
            return self._decode(block)
        except (IndexError, HPACKDecodingError) as error:
            raise HeaderBlockError(str(error)) from error

    def _decode(self, block: bytes) -> tuple[list[Field], int]:
        fields: list[Field] = []
        total = 0
        at = 0
        end = len(block)
        while at < end:
            first = block[at]
            at += 1
            if first >= 0x80:
                index = first & 0x7F
                if index == 0x7F:
                    index, at = _integer(block, at, 0x7F)
                field = self._entry(index)
            elif first >= 0x40 or first < 0x20:
                prefix = 0x3F if first >= 0x40 else 0x0F
                index = first & prefix
                if index == prefix:
                    index, at = _integer(block, at, prefix)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = (name, value)
                if first >= 0x40:
                    self._insert(field)
            else:
                if fields:
                    raise HeaderBlockError("table size update after a field")
                size = first & 0x1F
                if size == 0x1F:
                    size, at = _integer(block, at, 0x1F)
                if size > _TABLE_BYTES:
                    raise HeaderBlockError("table size above the agreed one")
                self._table_bytes = size
                self._evict()
                self.generation += 1
                continue
            total += len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            if total > self._max_bytes:
                raise HeaderListTooLarge
            fields.append(field)
        return fields, total

    def _entry(self, index: int) -> Field:
        if index > _STATIC_LENGTH:
            return self._dynamic[index - _STATIC_LENGTH - 1]
        if index == 0:
            raise HeaderBlockError("index 0")
        return _STATIC[index - 1]

    def _insert(self, field: Field) -> None:
        self._dynamic.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
        self.generation += 1
        self._evict()

    def _evict(self) -> None:
        while self._size > self._table_bytes:
            name, value = self._dynamic.pop()
            self._size -= len(name) + len(value) + _ENTRY_OVERHEAD


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """The rest of an integer whose prefix bits were all ones (RFC 7541 section 5.1)."""
    value = prefix
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise HeaderBlockError("integer too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    first = block[at]
    at += 1
    length = first & 0x7F
    if length == 0x7F:
        length, at = _integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise HeaderBlockError("string beyond the block")
    raw = block[at:end]
    return (decode_huffman(raw) if first >= 0x80 else raw), end


def _encode_integer(first: int, prefix: int, value: int) -> bytes:
    if value < prefix:
        return bytes((first | value,))
    out = bytearray((first | prefix,))
    value -= prefix
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(name: bytes, value: bytes) -> bytes:
    """One field of an answer, as a literal that enters no table. `name` is lower case."""
    first = 0x10 if name in _NEVER_INDEXED else 0x00
    index = _NAME_INDEX.get(name)
    if index is None:
        head = bytes((first,)) + _encode_integer(0, 0x7F, len(name)) + name
    else:
        head = _encode_integer(first, 0x0F, index)
    return head + _encode_integer(0, 0x7F, len(value)) + value


def encode_status(status: int) -> bytes:
    """The `:status` pseudo-header of an answer."""
    value = b"%d" % status
    index = _STATUS_INDEX.get(value)
    return encode_field(b":status", value) if index is None else bytes((0x80 | index,))
