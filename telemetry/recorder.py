"""The seam between those who end spans and whatever keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lakemesh.telemetry.span import Span


class SpanRecorder(Protocol):
    """Keeps ended spans.

    A span is durable against SIGKILL of the process when the method returns. Neither method raises
    nor blocks on anything slower than the kernel's page cache; what cannot be kept is counted.
    Both may be called from any thread.
    """

    def record(self, span: Span) -> None:
        """Keeps one span."""

    def record_all(self, spans: Sequence[Span]) -> None:
        """Keeps the spans of one local trace together, all or none."""


class NullRecorder:
    """Keeps nothing: TELEMETRY_ENABLED=false."""

    __slots__ = ()

    def record(self, span: Span) -> None:
        """Forgets the span."""

    def record_all(self, spans: Sequence[Span]) -> None:
        """Forgets the spans."""
