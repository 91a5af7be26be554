"""From header blocks to request heads, remembering those whose bytes will mean the same again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakemesh.server.h2_frames import ConnectionFault, ErrorCode, RequestHead
from lakemesh.server.h2_grpc import GrpcHead, is_grpc
from lakemesh.server.h2_hpack import Field, HeaderBlockError, HeaderDecoder, HeaderListTooLarge

if TYPE_CHECKING:
    from lakemesh.server.h2_limits import H2Limits
    from lakemesh.server.services import ServiceTable

_REMEMBERED = 64
_REMEMBERED_BYTES = 512


class HeadReader:
    """The header blocks of one connection, in order."""

    __slots__ = ("_decoder", "_limits", "_services", "remembered")

    def __init__(self, services: ServiceTable, limits: H2Limits) -> None:
        self._decoder = HeaderDecoder(limits.header_list_hard_bytes)
        self._services = services
        self._limits = limits
        self.remembered: dict[bytes, RequestHead | GrpcHead] = {}
        """Heads by their block: true as long as the decoder's table stays what it is."""

    def read(self, block: bytes) -> RequestHead | GrpcHead:
        """Decode, check and, when it may be, remember a request's head.

        Raises MalformedRequest (its stream's fault) or ConnectionFault.
        """
        before = self._decoder.generation
        fields, size = self.fields(block)
        head = RequestHead(fields, size)
        meaning: RequestHead | GrpcHead = head
        if is_grpc(head.content_type):
            meaning = GrpcHead(head, self._services, self._limits.header_list_bytes)
        if self._decoder.generation == before and len(block) <= _REMEMBERED_BYTES:
            if len(self.remembered) >= _REMEMBERED:
                self.remembered.clear()
            self.remembered[block] = meaning
        return meaning

    def fields(self, block: bytes) -> tuple[list[Field], int]:
        """The fields of any block and the size of the list. Raises ConnectionFault."""
        before = self._decoder.generation
        try:
            return self._decoder.decode(block)
        except HeaderBlockError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header block") from error
        except HeaderListTooLarge as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too large") from error
        finally:
            if self._decoder.generation != before:
                self.remembered.clear()
